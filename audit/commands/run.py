"""``auditorch run``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from . import options

if TYPE_CHECKING:
    from ...reports.record import AuditRecord


@click.command()
@options.spec_argument
@options.output_option
@click.option("--only", multiple=True, metavar="ID", help="Run only this check or variant. Repeatable.")
@click.option("--skip", multiple=True, metavar="ID", help="Leave this check or variant out. Repeatable.")
@options.set_option
@options.limit_option
@options.device_option
@options.seed_option
@click.option("--fresh", is_flag=True, help="Compute everything anew instead of taking finished results over.")
@options.json_option
@options.quiet_option
@click.pass_context
def run(
    ctx: click.Context,
    spec: Path,
    output: Path,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    overrides: tuple[str, ...],
    limit: int | None,
    device: str | None,
    seed: int | None,
    fresh: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Audits the model that SPEC describes and writes the report."""
    from ..progress import display_for
    from ..runner import run_audit
    from ..spec import load_spec
    from ..verdict import exit_code

    read = load_spec(spec, [*as_overrides(limit, seed), *overrides])
    with results_only_on_stdout():
        record = run_audit(
            read,
            output,
            device=device or read.device or "auto",
            fresh=fresh,
            only=only,
            skip=skip,
            display=display_for(sys.stderr, quiet=quiet),
        )
    show_record(record, output, as_json=as_json, quiet=quiet)
    ctx.exit(exit_code(record))


def as_overrides(limit: int | None, seed: int | None) -> list[str]:
    """The flags that stand for a value of the spec, in the form of ``--set``."""
    given = {"data.limit": limit, "seed": seed}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def show_record(record: AuditRecord, output: Path, *, as_json: bool, quiet: bool) -> None:
    """Prints the verdict and where the report lies, or the record."""
    from ..verdict import verdict_table

    if as_json:
        click.echo(record.model_dump_json(indent=2))
    elif not quiet:
        click.echo(verdict_table(record))
        click.echo(f"\nReport: {output / 'report.html'}")


@contextlib.contextmanager
def results_only_on_stdout() -> Iterator[TextIO]:
    """Sends what models and libraries print to stderr; gives the real stdout, for results alone."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield out
