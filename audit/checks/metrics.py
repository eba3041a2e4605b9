"""Metrics with their intervals, made the same way in every check."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from ...attacks.statistics import Method, rate_interval
from ...reports.record import Metric, Result
from .base import Claim

_METHODS: dict[Method, str] = {"wilson": "wilson", "exact": "clopper-pearson"}


def rate(
    name: str, successes: int, n: int, *, label: str, higher_is_better: bool | None, method: Method = "wilson"
) -> Metric:
    """A share with its interval; undefined (value None) when ``n`` is 0."""
    if n == 0:
        return undefined(name, label=label, unit="rate", higher_is_better=higher_is_better)
    low, high = rate_interval(successes, n, method=method)
    return Metric(
        name=name,
        value=successes / n,
        ci_low=low,
        ci_high=high,
        n=n,
        unit="rate",
        higher_is_better=higher_is_better,
        label=label,
        method=_METHODS[method],
    )


def estimate(
    name: str,
    value: float,
    interval: tuple[float, float],
    n: int,
    *,
    label: str,
    higher_is_better: bool | None,
    method: str,
    unit: str = "",
) -> Metric:
    """A number whose interval was made elsewhere; NaN becomes undefined."""
    if math.isnan(value):
        return undefined(name, label=label, unit=unit, higher_is_better=higher_is_better)
    known = not any(math.isnan(end) for end in interval)
    return Metric(
        name=name,
        value=value,
        ci_low=interval[0] if known else None,
        ci_high=interval[1] if known else None,
        n=n,
        unit=unit,
        higher_is_better=higher_is_better,
        label=label,
        method=method if known else "",
    )


def plain(
    name: str, value: float | None, n: int | None, *, label: str, unit: str, higher_is_better: bool | None
) -> Metric:
    """A number without an interval: a count of work done, a quantile of what was observed."""
    return Metric(name=name, value=value, n=n, label=label, unit=unit, higher_is_better=higher_is_better)


def undefined(name: str, *, label: str, unit: str = "", higher_is_better: bool | None) -> Metric:
    """A metric that has no value here; the check says why in its warnings."""
    return Metric(name=name, value=None, n=0, label=label, unit=unit, higher_is_better=higher_is_better)


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def recomputed(metrics: Iterable[Metric], result: Result, source: str, tolerance: float = 1e-9) -> Iterator[Claim]:
    """For each metric, computed again from ``source``, whether ``result`` has it with this value."""
    claimed = by_name(result.metrics)
    for metric in metrics:
        value = claimed[metric.name].value if metric.name in claimed else math.nan
        same = value == metric.value
        if value is not None and metric.value is not None:
            same = same or abs(value - metric.value) <= tolerance
        yield Claim(f"{metric.name} follows from the {source}", same, f"{value}, recomputed {metric.value}")


def percent(value: float) -> str:
    """``12.3 %``, with more places only below one percent."""
    return f"{100 * value:.1f} %" if value >= 0.01 or value == 0 else f"{100 * value:.2g} %"
