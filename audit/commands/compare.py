"""``auditorch compare``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Show metrics that did not change as well.")
@click.option("--fail-on-regression", is_flag=True, help="Exit code 1 when something regressed.")
@click.pass_context
def compare(ctx: click.Context, base: Path, new: Path, everything: bool, fail_on_regression: bool) -> None:
    """Compares two audits, folders or audit.json files: what improved, what regressed.

    A metric counts as changed when the 95 % interval of the difference excludes zero.
    """
    from ...reports.schema import read_record
    from ..compare import cells, gate_changes, regressed
    from ..compare import compare as differences_of
    from ..verdict import visible

    before, after = read_record(base), read_record(new)
    differences = differences_of(before, after)
    gates = gate_changes(before, after)
    rows = [cells(one) for one in differences if everything or one.change != "same"]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    for row in rows:
        click.echo(visible("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
    for expression, was, now in gates:
        click.echo(visible(f"gate {expression}: {was} before, {now} now"))
    if before.data.sha256 != after.data.sha256:
        click.echo("The two audits used different data.")
    worse = regressed(differences, gates)
    counts = {change: sum(one.change == change for one in differences) for change in ("improved", "regressed", "gone")}
    click.echo(f"{counts['improved']} improved, {counts['regressed']} regressed, {counts['gone']} gone")
    ctx.exit(1 if worse and fail_on_regression else 0)
