"""``auditorch demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from . import options
from .run import results_only_on_stdout, show_record


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("auditorch-demo"),
    show_default=True,
    envvar="AUDITORCH_OUTPUT",
    show_envvar=True,
    help="Folder for the demo's files and its report.",
)
@click.option("--quick", is_flag=True, help="Fewer samples, shorter trainings.")
@options.json_option
@options.quiet_option
@click.pass_context
def demo(ctx: click.Context, output: Path, quick: bool, as_json: bool, quiet: bool) -> None:
    """Fine-tunes a small image classifier, audits it, and leaves spec, model and data to start from.

    Exit code 0 when the demo ran to its end, whatever its gates say: they are there to be looked at.
    """
    from ..demo.run import run_demo
    from ..progress import display_for
    from ..verdict import exit_code

    with results_only_on_stdout():
        record, report = run_demo(output, quick=quick, display=display_for(sys.stderr, quiet=quiet))
    show_record(record, report, as_json=as_json, quiet=quiet)
    ctx.exit(exit_code(record) if record.verdict == "error" else 0)
