"""Robust accuracy against what the attack spent on each sample, from the one run that was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...attacks.attack import Unit
from ...attacks.statistics import rate_intervals
from ...reports.record import Chart, Line, Result
from .base import Claim
from .evasion_measures import Measured, ball_text
from .evasion_search import Search

_POINTS = 60
_WORDS: dict[Unit, str] = {
    "steps": "gradient steps per sample",
    "queries": "queries per sample",
    "passes": "forward passes per sample",
}


@dataclass(frozen=True, slots=True)
class Effort:
    """What was spent on each sample ``(n,)``, in ``unit``, until it fell within eps or the attack gave up."""

    measured: Measured
    spent: NDArray[np.int64]
    unit: Unit

    @classmethod
    def of(cls, search: Search, measured: Measured) -> Effort | None:
        """None where the attack does not count, or several attacks ran."""
        return None if search.unit is None else cls(measured, search.spent.numpy(), search.unit)

    def curve(self) -> tuple[tuple[float, ...], NDArray[np.int64]]:
        """At most sixty points: amounts spent, and how many samples stand when so much was spent on each."""
        own = self.spent[self.measured.correct]
        amounts = np.unique(own)
        if len(amounts) >= _POINTS:
            amounts = amounts[np.linspace(0, len(amounts) - 1, _POINTS - 1).round().astype(np.int64)]
        amounts = np.concatenate([[0], amounts[amounts > 0]])
        fell = self.spent[self.measured.fallen]
        standing = int(self.measured.correct.sum()) - (fell[None, :] <= amounts[:, None]).sum(1)
        return tuple(float(amount) for amount in amounts), standing


def effort_chart(effort: Effort, attack: str) -> Chart:
    """Robust accuracy against steps, queries or passes, with its band."""
    amounts, standing = effort.curve()
    n = len(effort.spent)
    low, high = rate_intervals(standing, n)
    ball = ball_text(effort.measured.norm, effort.measured.eps)
    return Chart(
        id="effort",
        title=f"Robust accuracy against {effort.unit if effort.unit != 'passes' else 'forward passes'}, {ball}",
        caption="At 0: clean accuracy. A curve that still falls at its end says that the attack was stopped too "
        "soon. Band: 95 % interval.",
        style="step",
        x_label=_WORDS[effort.unit],
        y_label="robust accuracy",
        y_range=(0, 1),
        lines=(
            Line(
                name=attack,
                x=amounts,
                y=tuple((standing / n).tolist()),
                low=tuple(low.tolist()),
                high=tuple(high.tolist()),
            ),
        ),
    )


def verify_effort(measured: Measured, recorded: Mapping[str, Tensor], result: Result) -> Iterator[Claim]:
    """Whether the curve follows from what is recorded of each sample."""
    chart = next((figure for figure in result.figures if isinstance(figure, Chart) and figure.id == "effort"), None)
    if chart is None:
        return
    unit: Unit | None = next((unit for unit, words in _WORDS.items() if words == chart.x_label), None)
    same = False
    if unit is not None and "spent" in recorded:
        again = effort_chart(Effort(measured, recorded["spent"].numpy(), unit), chart.lines[0].name)
        same = again.lines == chart.lines
    yield Claim("the curve against steps or queries follows from what each sample took", same)
