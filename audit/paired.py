"""Two models on the same samples: what changed, judged pair by pair.

A paired test sees through what the samples have in common: two accuracies whose intervals overlap widely can differ
beyond doubt when nearly every sample that changed did so in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import ndtri
from scipy.stats import binom, t

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Paired:
    """The change of a mean from one model to another on the same n samples.

    Attributes:
        gained, lost: samples whose outcome rose, and fell.
        difference: mean of the second minus mean of the first, with its 95 % interval ``low`` to ``high``.
        p: two-sided p-value of no change: exact McNemar for outcomes 0 and 1, paired t otherwise.
    """

    n: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float
    method: str

    def changed(self, alpha: float = 0.05) -> bool:
        """Whether the test rejects that nothing changed."""
        return self.p < alpha


def paired_change(before: Numbers, after: Numbers) -> Paired:
    """The change between outcomes ``(n,)`` of the same samples, in the same order.

    Outcomes that are all 0 or 1 are compared by McNemar's exact test with Tango's interval, others by the paired t.

    Raises:
        ValueError: when the shapes differ or there is no sample.
    """
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ValueError(f"paired outcomes need one shape (n,), n > 0: {before.shape} and {after.shape}")
    gained, lost = int((after > before).sum()), int((after < before).sum())
    n, difference = len(before), float((after - before).mean())
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        low, high = paired_rate_interval(gained, lost, n)
        return Paired(n, gained, lost, difference, low, high, mcnemar_exact(gained, lost), "McNemar, exact")
    low, high = paired_mean_interval(after - before)
    return Paired(n, gained, lost, difference, low, high, _paired_t(after - before), "paired t")


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value that ``b`` and ``c`` discordant pairs are equally likely (McNemar, 1947; exact binomial).

    Raises:
        ValueError: for a negative count.
    """
    if min(b, c) < 0:
        raise ValueError(f"discordant pairs are counts: {b} and {c}")
    return min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5)))


def paired_rate_interval(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval (Tango, 1998) for the difference ``(gained - lost) / n`` of two rates on the same n samples.

    Raises:
        ValueError: when the counts do not fit ``n``.
    """
    if n < 1 or min(gained, lost) < 0 or gained + lost > n:
        raise ValueError(f"{gained} gained and {lost} lost do not fit {n} pairs")
    z = -float(ndtri((1 - confidence) / 2))
    estimate = (gained - lost) / n

    def end(side: int, bracket: tuple[float, float]) -> float:
        """Where the estimate is z standard errors away."""
        found = root_scalar(lambda delta: side * _score(gained, lost, n, delta) - z, bracket=bracket, xtol=1e-10)
        return float(found.root)

    low = -1.0 if estimate == -1 else end(1, (-1 + 1e-12, estimate))
    high = 1.0 if estimate == 1 else end(-1, (estimate, 1 - 1e-12))
    return low, high


def _score(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's statistic: the estimate less ``delta`` in its standard errors under ``delta``."""
    # The rate of lost pairs that is likeliest when the difference is delta.
    a = 2 * n
    b = -gained - lost + (2 * n - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    q = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * q + delta * (1 - delta))
    distance = gained - lost - n * delta
    return 0.0 if distance == 0 else float(distance / np.sqrt(max(variance, 1e-300)))


def paired_mean_interval(differences: Numbers, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of ``differences`` ``(n,)``; NaN, NaN with fewer than two."""
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return float("nan"), float("nan")
    half = float(differences.std(ddof=1)) / n**0.5 * float(t.ppf((1 + confidence) / 2, n - 1))
    return mean - half, mean + half


def _paired_t(differences: Numbers) -> float:
    """Two-sided p-value that the mean difference is 0; NaN with fewer than two samples."""
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return float("nan")
    error = float(differences.std(ddof=1)) / n**0.5
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(t.sf(abs(mean) / error, n - 1))
