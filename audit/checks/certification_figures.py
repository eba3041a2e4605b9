"""The curve and the table of a certification."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...attacks.statistics import rate_interval, rate_intervals
from ...reports.record import Chart, Figure, Line, Table
from .certification_measures import Measured
from .evasion_measures import radius_text

_POINTS = 40


def charts(measured: Measured, title: str) -> Iterator[Figure]:
    """Certified accuracy against radius, with the accuracy under attack beside it, and the numbers."""
    yield _curve(measured, title)
    yield _table(measured)


def _curve(measured: Measured, title: str) -> Chart:
    n = len(measured.correct)
    if measured.radius is None:
        radii = np.array([0.0, *measured.radii])
        held = np.array([measured.correct.sum(), *measured.proven.sum(1)])
    else:
        finite = measured.radius[np.isfinite(measured.radius)]
        radii = np.linspace(0, 1.05 * max(float(finite.max(initial=0.0)), measured.eps), _POINTS)
        held = (measured.radius[None] > radii[:, None]).sum(1)
        held[0] = measured.correct.sum()
    low, high = rate_intervals(held, n)
    robust = rate_interval(int(measured.robust.sum()), n)
    return Chart(
        id="curve",
        title=f"Certified accuracy against {measured.norm} radius",
        caption="Share of samples that are right for every input within the radius, proven; and the share that the "
        "attack did not break. The truth lies between the two. Bands: 95 % intervals.",
        x_label=f"{measured.norm} radius",
        y_label="accuracy",
        y_range=(0, 1),
        lines=(
            Line(
                name=f"certified ({title})",
                x=tuple(radii.tolist()),
                y=tuple((held / n).tolist()),
                low=tuple(low.tolist()),
                high=tuple(high.tolist()),
            ),
            Line(
                name="under attack",
                x=(0.0, measured.eps),
                y=(float(measured.correct.mean()), float(measured.robust.mean())),
                low=(float(low[0]), robust[0]),
                high=(float(high[0]), robust[1]),
                dashed=True,
            ),
        ),
    )


def _table(measured: Measured) -> Table:
    n = len(measured.correct)
    rows = []
    for proven, eps in zip(measured.proven, measured.radii, strict=True):
        count = int(proven.sum())
        attacked = float(measured.robust.mean()) if eps == measured.eps else None
        rows.append((radius_text(measured.norm, eps), count / n, *rate_interval(count, n), attacked))
    return Table(
        id="radii",
        title="Certified accuracy by radius",
        caption=f"95 % intervals (Wilson), {n} samples; the attack ran at one radius.",
        columns=(f"{measured.norm} radius", "certified", "from", "to", "under attack"),
        rows=tuple(rows),
    )
