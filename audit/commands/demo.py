"""``auditorch demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from . import options
from .run import finish, results_only_on_stdout


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

    The gates of the demo are set so that some fail. Exit code 0 means that the demo ran, whatever its gates say.
    """
    from ..demo.run import run_demo
    from ..progress import display_for

    with results_only_on_stdout():
        record, report = run_demo(output, quick=quick, display=display_for(sys.stderr, quiet=quiet))
    finish(ctx, record, report, as_json=as_json, quiet=quiet)
