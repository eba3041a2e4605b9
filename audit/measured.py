"""One measured number with its interval, and what a failing test tells of it."""

from __future__ import annotations

from dataclasses import dataclass

from ..attacks.statistics import rate_interval
from ..reports.record import Metric


@dataclass(frozen=True, slots=True)
class Measured:
    """One rate with what a failing test needs to tell.

    Attributes:
        metric: value, 95 % interval and n.
        how: the setting: attack, threat, false positive rate.
        worst: positions and figures of the samples that did worst, the worst first.
    """

    metric: Metric
    how: str
    worst: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The rate, 0..1; NaN when it is undefined."""
        return float("nan") if self.metric.value is None else self.metric.value

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        low, high = self.metric.ci_low, self.metric.ci_high
        return (float("nan") if low is None else low, float("nan") if high is None else high)


def share(name: str, hits: int, n: int, *, higher_is_better: bool) -> Metric:
    """A rate of counted samples with its Wilson interval."""
    low, high = rate_interval(hits, n)
    return Metric(
        name=name,
        value=hits / n,
        ci_low=low,
        ci_high=high,
        n=n,
        unit="rate",
        higher_is_better=higher_is_better,
        method="wilson",
    )
