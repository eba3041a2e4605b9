"""The comparison of two audits as a page of its own, in the report's dress."""

from __future__ import annotations

from .differences import KINDS, MEANING, Comparison, cells
from .html import page


def render_comparison_html(comparison: Comparison) -> str:
    """One self-contained HTML file: gates that changed, then metrics by what became of them."""
    groups = [(kind, MEANING[kind], [(one, cells(one)) for one in comparison.of(kind)]) for kind in KINDS]
    return page(
        "comparison.html.jinja",
        comparison=comparison,
        groups=[group for group in groups if group[2]],
        title=f"{comparison.after.name}: against its baseline",
    )
