"""``auditorch scan``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def scan(ctx: click.Context, paths: tuple[str, ...], as_json: bool) -> None:
    """Looks for code in model files and folders, without executing anything.

    Exit code 0 when every file is clean, 3 when one is dangerous or could not be examined.
    """
    from ..loading.pickle_scan import scan as scan_files
    from ..verdict import visible

    reports = scan_files(paths)
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        for report in reports:
            click.echo(visible(f"{report.status:<9}  {report.path}  ({report.format})"))
            for reason in report.reasons:
                click.echo(visible(f"           {reason}"))
    ctx.exit(0 if all(report.status == "clean" for report in reports) else 3)
