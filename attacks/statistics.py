"""Intervals for what is counted, ranked or resampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, expit, logit, ndtri
from scipy.stats import binom, rankdata

Method = Literal["wilson", "exact"]

_CELLS = 1 << 22  # resampled weights held at a time: 32 MB as float64


def rate_interval(successes: int, n: int, confidence: float = 0.95, method: Method = "wilson") -> tuple[float, float]:
    """Two-sided interval for a rate: Wilson (1927) score, or exact (Clopper & Pearson, 1934).

    Raises:
        ValueError: when ``n`` is 0 or ``successes`` is outside 0..n.
    """
    low, high = rate_intervals(successes, n, confidence, method)
    return float(low), float(high)


def rate_intervals(
    successes: ArrayLike, n: ArrayLike, confidence: float = 0.95, method: Method = "wilson"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """:func:`rate_interval` for arrays that broadcast; lower and upper ends.

    Raises:
        ValueError: when some ``n`` is 0 or some ``successes`` is outside 0..n.
    """
    s, total = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    if np.any(total <= 0) or np.any(s < 0) or np.any(s > total):
        raise ValueError("a rate needs n > 0 and successes in 0..n")
    low, high = (_wilson if method == "wilson" else _clopper_pearson)(s, total, (1 - confidence) / 2)
    # At 0 and n of n the end is exact; the formulas give it but for rounding.
    return np.where(s == 0, 0.0, low), np.where(s == total, 1.0, high)


def _wilson(s: NDArray[np.float64], n: NDArray[np.float64], tail: float) -> tuple[NDArray[np.float64], ...]:
    z2 = ndtri(tail) ** 2
    middle = (s + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (s * (n - s) / n + z2 / 4)) / (n + z2)
    return middle - half, middle + half


def _clopper_pearson(s: NDArray[np.float64], n: NDArray[np.float64], tail: float) -> tuple[NDArray[np.float64], ...]:
    low = betaincinv(np.maximum(s, 0.5), n - s + 1, tail)
    high = betaincinv(s + 1, np.maximum(n - s, 0.5), 1 - tail)
    return low, high


def sum_interval(
    weights: Sequence[float], rates: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Interval for ``sum(weight * rate)`` of independent rates from their own intervals (Zou & Donner, 2008)."""
    estimate = sum(w * rate for w, rate in zip(weights, rates, strict=True))
    below = above = 0.0
    for w, rate, (low, high) in zip(weights, rates, intervals, strict=True):
        down, up = (rate - low, high - rate) if w >= 0 else (high - rate, rate - low)
        below += (w * down) ** 2
        above += (w * up) ** 2
    return estimate - below**0.5, estimate + above**0.5


def auc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """Probability that a positive scores above a negative, ties counting half; inputs ``(p,)`` and ``(n,)``."""
    return float(placements(positive, negative)[0].mean())


def placements(
    positive: NDArray[np.floating], negative: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each positive the share of negatives below it, for each negative the share of positives above it."""
    p, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    of_positive = (ranks[:p] - rankdata(positive)) / n
    of_negative = 1 - (ranks[p:] - rankdata(negative)) / p
    return of_positive, of_negative


def auc_interval(
    positive: NDArray[np.floating], negative: NDArray[np.floating], confidence: float = 0.95
) -> tuple[float, float]:
    """Interval for :func:`auc`: DeLong et al. (1988) variance on the logit scale.

    NaN, NaN when there are fewer than two positives or negatives.
    """
    if min(len(positive), len(negative)) < 2:
        return float("nan"), float("nan")
    of_positive, of_negative = placements(positive, negative)
    variance = of_positive.var(ddof=1) / len(positive) + of_negative.var(ddof=1) / len(negative)
    return logit_interval(float(of_positive.mean()), float(variance), min(len(positive), len(negative)), confidence)


def logit_interval(value: float, variance: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Normal interval for a value in 0..1 on the logit scale, back in 0..1.

    At 0 or 1 the variance is estimated as 0 and says nothing: the interval is then that of ``n`` of ``n``.
    """
    if value in (0.0, 1.0):
        return rate_interval(round(value * n), n, confidence)
    half = -ndtri((1 - confidence) / 2) * variance**0.5 / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


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
    return percentile_interval(values, confidence)


def percentile_interval(values: NDArray[np.floating], confidence: float = 0.95) -> tuple[float, float]:
    """The middle share of resampled ``values``, NaN left out; NaN, NaN when fewer than half are numbers."""
    defined = values[~np.isnan(values)]
    if len(defined) < max(1, len(values) / 2):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def basic_interval(
    values: NDArray[np.floating], estimate: float, bounds: tuple[float, float], confidence: float = 0.95
) -> tuple[float, float]:
    """Basic (reflected) bootstrap for statistics that noise pushes one way, such as a maximum or a mean of |.|.

    Resampling pushes them the same way once more, so a percentile interval can lie wholly on the wrong side of
    the estimate. The result is cut to ``bounds`` and widened to hold the estimate.
    """
    low, high = percentile_interval(values, confidence)
    return min(estimate, max(bounds[0], 2 * estimate - high)), max(estimate, min(bounds[1], 2 * estimate - low))


def bootstrap_weights(
    n: int, resamples: int = 1000, seed: int = 0, cells: int = _CELLS
) -> Iterator[NDArray[np.float64]]:
    """How often each of n samples is drawn in each resample: blocks ``(b, n)`` that add up to ``resamples`` rows."""
    rng = np.random.default_rng(seed)
    rows = max(1, cells // max(n, 1))
    for start in range(0, resamples, rows):
        b = min(rows, resamples - start)
        drawn = rng.integers(0, n, (b, n)) + np.arange(b)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)


def bootstrap_sums(contributions: NDArray[np.floating], resamples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Column sums ``(resamples, m)`` of ``contributions`` ``(n, m)`` over resampled rows."""
    return np.concatenate([w @ contributions for w in bootstrap_weights(len(contributions), resamples, seed)])


def bootstrap_counts(counts: NDArray[np.int64], resamples: int = 1000, seed: int = 0) -> NDArray[np.int64]:
    """Tables ``(resamples, *counts.shape)`` of counts as resampling the counted samples would give them.

    Drawing n samples with replacement makes a table of counts multinomial, so no sample needs to be drawn.
    """
    n = int(counts.sum())
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, counts.ravel() / n, size=resamples).reshape(resamples, *counts.shape)


def quantile_interval(values: NDArray[np.floating], q: float, confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval for the q-quantile of ``values`` ``(n,)``: order statistics by the binomial.

    NaN, NaN when so few values cannot bound it on both sides.
    """
    n, tail = len(values), (1 - confidence) / 2
    low, high = int(binom.ppf(tail, n, q)), int(binom.ppf(1 - tail, n, q)) + 1
    if low < 1 or high > n:
        return float("nan"), float("nan")
    ordered = np.sort(values)
    return float(ordered[low - 1]), float(ordered[high - 1])
