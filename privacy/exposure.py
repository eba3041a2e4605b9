"""Exposure of secrets planted in text (the Secret Sharer, arXiv 1802.08232).

A canary is a sentence with a random part, such as a number of nine digits, put into the training text some times. A
model that did not memorise it finds it no likelier than any other filling of the same form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest, skewnorm

from ..attacks.errors import UnsupportedError
from ..attacks.statistics import rate_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exposure:
    """How far a canary stands out, in bits.

    Attributes:
        value: exposure; 0 for the least likely of all fillings, ``log2(space)`` for the likeliest, about 1.44 on
            average without memorisation.
        low, high: 95 % interval, from how many references are likelier; exact when all fillings were ranked.
        rank: among the references, 1 the likeliest.
        extrapolated: what a skew-normal fitted to the references says, which can exceed what sampling can show; None
            when it does not fit them (Kolmogorov-Smirnov, 1 %).
    """

    value: float
    low: float
    high: float
    rank: int
    extrapolated: float | None


def exposure(canary: float, references: Floats, space: float | None = None) -> Exposure:
    """Exposure of one canary; see :func:`exposures`."""
    return exposures(np.array([canary]), references, space)[0]


def exposures(canaries: Floats, references: Floats, space: float | None = None) -> list[Exposure]:
    """Exposure of canaries of the same form, from log-perplexities (the lower, the likelier) under any scorer.

    Args:
        canaries: log-perplexities ``(c,)`` of the planted fillings under the model.
        references: those of other fillings of the same form ``(m,)``: all of them, or a random sample.
        space: number of possible fillings; ``m + 1`` when left out, which says that these are all.

    Raises:
        UnsupportedError: for fewer than 10 references, numbers that are not finite, or a space smaller than they are.
    """
    m = len(references)
    if m < 10 or not np.isfinite(references).all() or not np.isfinite(canaries).all():
        raise UnsupportedError(f"exposure needs finite log-perplexities of canaries and at least 10 others, not {m}")
    size = float(m + 1) if space is None else float(space)
    if size < m + 1:
        raise UnsupportedError(f"the space has {size:g} fillings, fewer than the {m} references and the canary")
    curve = _curve(references)
    return [_exposure(float(canary), references, size, curve) for canary in canaries]


def _exposure(canary: float, references: Floats, size: float, curve: Curve | None) -> Exposure:
    m = len(references)
    likelier = int((references < canary).sum() + 0.5 * (references == canary).sum())
    # The share of fillings at least as likely, the canary itself among them.
    value = low = high = -math.log2(max((likelier + 1) / (m + 1), 1 / size))
    if size > m + 1:
        ends = rate_interval(likelier, m, method="exact")
        low, high = (-math.log2(max(end, 1 / size)) for end in reversed(ends))
    extrapolated = None if curve is None else float(-skewnorm.logcdf(canary, *curve) / math.log(2))
    return Exposure(value, min(low, value), max(high, value), likelier + 1, extrapolated)


Curve = tuple[float, float, float]


def _curve(references: Floats) -> Curve | None:
    """Shape, place and scale of a skew-normal that fits the references; None where it does not."""
    if np.ptp(references) <= 1e-9 * np.abs(references).max():  # equal but for rounding
        return None
    shape, place, scale = (float(value) for value in skewnorm.fit(references))  # pyright: ignore[reportArgumentType]
    curve = shape, place, scale
    return curve if kstest(references, skewnorm(*curve).cdf).pvalue >= 0.01 else None
