"""``auditorch compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ...reports.differences import Comparison


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Show metrics that did not change as well.")
@click.option("--fail-on-regression", is_flag=True, help="Exit code 1 when something regressed.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Chance that any change is reported although nothing changed.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the comparison as a page.")
@click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False), help="Write it as a pull-request comment.")
@click.pass_context
def compare(
    ctx: click.Context,
    base: Path,
    new: Path,
    everything: bool,
    fail_on_regression: bool,
    alpha: float,
    html: Path | None,
    markdown: Path | None,
) -> None:
    """Compares two audits, folders or audit.json files: what improved, what regressed.

    Metrics of the same samples are compared sample by sample, others by their intervals; p-values are corrected for
    the number of metrics. A regression is a metric that got worse or is gone, or a gate that no longer passes.
    """
    from ...reports.comparison_page import render_comparison_html
    from ...reports.differences import render_comparison_markdown
    from ...reports.schema import read_record, write_text
    from ..compare import compare as compared

    before, after = read_record(base), read_record(new)
    folders = tuple(path if path.is_dir() else path.parent for path in (base, new))
    comparison = compared(before, after, (folders[0], folders[1]), alpha)
    _print(comparison, everything=everything)
    if html is not None:
        write_text(html, render_comparison_html(comparison))
    if markdown is not None:
        write_text(markdown, render_comparison_markdown(comparison))
    ctx.exit(1 if comparison.regressed and fail_on_regression else 0)


def _print(comparison: Comparison, *, everything: bool) -> None:
    from ...reports.differences import KINDS, cells
    from ..verdict import visible

    shown = KINDS if everything else KINDS[:-1]
    rows = [cells(one) for kind in shown for one in comparison.of(kind)]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(6)]
    for row in rows:
        click.echo(visible("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
    for gate in comparison.gates:
        click.echo(visible(f"gate {gate.expression}: {gate.before} before, {gate.after} now"))
    if not comparison.same_data:
        click.echo("The two audits used different data.")
    click.echo(comparison.sentence)
