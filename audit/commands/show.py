"""``auditorch list`` and ``auditorch show``."""

from __future__ import annotations

import click


@click.command(name="list")
@click.argument("kind", type=click.Choice(["checks", "attacks", "defenses", "metrics"]), required=False)
def list_names(kind: str | None) -> None:
    """Lists checks, attacks, defenses or metrics; checks, attacks and defenses when nothing is named."""
    from .. import catalog

    if kind == "metrics":
        _print_rows(catalog.metrics())
        return
    for one in catalog.KINDS:
        if kind in (None, one):
            if kind is None:
                click.echo(f"{one}:")
            _print_rows(catalog.listing(one))
            if one == "attacks":
                click.echo("text attacks, for the check text_evasion:")
                _print_rows(catalog.text_attacks())


@click.command()
@click.argument("name")
def show(name: str) -> None:
    """Shows a check, attack or defense: options with defaults, metrics, references, standards."""
    from ..catalog import description

    click.echo(description(name))


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"  {name.ljust(width)}  {text}".rstrip())
