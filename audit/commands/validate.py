"""``auditorch validate``."""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command()
@options.spec_argument
@options.set_option
def validate(spec: Path, overrides: tuple[str, ...]) -> None:
    """Checks SPEC without loading model or data: names, types, gates, and that its files exist."""
    from ..presence import require_files
    from ..spec import load_spec

    read = load_spec(spec, overrides)
    require_files(read)
    parts = [
        f"{len(read.checks)} checks ({', '.join(check.id for check in read.checks)})",
        f"{len(read.variants)} variants" + _named([variant.id for variant in read.variants]),
        f"{len(read.gates)} gates",
    ]
    click.echo(f"{spec}: valid; {', '.join(parts)}")


def _named(ids: list[str]) -> str:
    return f" ({', '.join(ids)})" if ids else ""
