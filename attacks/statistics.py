"""Intervals for what is counted or resampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest


def rate_interval(
    successes: int, n: int, confidence: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> tuple[float, float]:
    """Two-sided interval for a rate: Wilson (1927) score, or exact (Clopper & Pearson, 1934).

    Raises:
        ValueError: when ``n`` is 0 or ``successes`` is outside 0..n.
    """
    interval = binomtest(successes, n).proportion_ci(confidence, method)
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap (Efron, 1979) of ``statistic(indices)``; undefined resamples (NaN) are left out.

    Returns NaN, NaN when fewer than half of the resamples are defined.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)])
    values = values[~np.isnan(values)]
    if len(values) < resamples / 2:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
