"""The trade-off of a membership attack, read where it matters: at low false positive rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...attacks.errors import UnsupportedError
from ...attacks.statistics import auc, basic_interval, bootstrap_weights, rate_interval, sum_interval

Scores = NDArray[np.floating]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Roc:
    """One point per distinct score, from "nobody is a member" to "everybody is"; arrays ``(m,)``.

    At each point, records that score at least ``thresholds`` are called members: tied records are called together.
    """

    fpr: Floats
    tpr: Floats
    thresholds: Floats
    auc: float


@dataclass(frozen=True, slots=True)
class TPRAtFPR:
    """The share of members found at a false positive rate of at most the target.

    Attributes:
        value: true positive rate, with its 95 % Clopper-Pearson interval ``low``..``high`` given the threshold.
        threshold: lowest score that is called a member; infinity when no score may be.
        fpr_achieved: share of non-members at or above the threshold; never above the target.
    """

    value: float
    low: float
    high: float
    threshold: float
    fpr_achieved: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def roc(members: Scores, nonmembers: Scores) -> Roc:
    """The ROC curve of calling high scores members; inputs ``(p,)`` and ``(n,)``.

    Raises:
        UnsupportedError: when either is empty or holds NaN.
    """
    _require(members, nonmembers)
    scores = np.concatenate([members, nonmembers]).astype(np.float64)
    distinct = np.unique(scores)[::-1]
    thresholds = np.concatenate([[np.inf], distinct])
    return Roc(
        fpr=_share_from(nonmembers, thresholds),
        tpr=_share_from(members, thresholds),
        thresholds=thresholds,
        auc=auc(members, nonmembers),
    )


def tpr_at_fpr(members: Scores, nonmembers: Scores, fpr: float) -> TPRAtFPR:
    """TPR at the lowest threshold whose false positive rate is at most ``fpr`` (Carlini et al., arXiv 2112.03570).

    The threshold is the lowest score with at most ``floor(fpr * n)`` non-members at or above it. Where non-members tie
    at the limit all of them stay out, so the rate achieved may be lower than asked but never higher. With fewer than
    ``1 / fpr`` non-members it is 0, and the threshold lies above all of them.

    Raises:
        UnsupportedError: when there are no scores, NaN, or ``fpr`` is not in 0..1.
    """
    _require(members, nonmembers)
    if not 0 <= fpr <= 1:
        raise UnsupportedError(f"fpr is {fpr}: it must be in 0..1")
    allowed = int(np.floor(fpr * len(nonmembers) + 1e-9))
    falling = np.sort(nonmembers)[::-1]
    # Calling members only what scores above the first non-member too many.
    limit = falling[allowed] if allowed < len(falling) else -np.inf
    above = np.concatenate([members[members > limit], nonmembers[nonmembers > limit]])
    threshold = float(above.min()) if len(above) else float("inf")
    hits = int((members > limit).sum())
    low, high = rate_interval(hits, len(members), method="exact")
    return TPRAtFPR(hits / len(members), low, high, threshold, float((nonmembers > limit).mean()))


def advantage(members: Scores, nonmembers: Scores, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Largest TPR - FPR over all thresholds (Yeom et al., arXiv 1709.01604), with a basic bootstrap interval.

    As the largest of many differences it is above 0 even where nothing leaks, by about 1 / sqrt(n).
    """
    _require(members, nonmembers)
    order = np.argsort(-np.concatenate([members, nonmembers]), kind="stable")
    sorted_scores = np.concatenate([members, nonmembers])[order]
    ends = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))

    def largest(of_members: Floats, of_nonmembers: Floats) -> Floats:
        gains = np.concatenate([of_members / len(members), -of_nonmembers / len(nonmembers)], axis=1)
        return np.maximum(gains[:, order].cumsum(1)[:, ends].max(1), 0)

    value = float(largest(np.ones((1, len(members))), np.ones((1, len(nonmembers))))[0])
    cells = 1 << 21
    rows = max(1, cells // max(len(members), len(nonmembers)))
    pairs = zip(
        bootstrap_weights(len(members), resamples, seed, rows * len(members)),
        bootstrap_weights(len(nonmembers), resamples, seed + 1, rows * len(nonmembers)),
        strict=True,
    )
    values = np.concatenate([largest(a, b) for a, b in pairs])
    return Estimate(value, *basic_interval(values, value, (0.0, 1.0)))


def balanced_accuracy(members: Scores, nonmembers: Scores) -> Estimate:
    """Mean of the shares of members and non-members told apart by one threshold, chosen on other records.

    The best threshold of the records at even positions is used on those at odd ones, and the reverse: unlike
    ``(1 + advantage) / 2`` this is 0.5 on average where nothing leaks.

    Raises:
        UnsupportedError: with fewer than two records on either side.
    """
    _require(members, nonmembers)
    if min(len(members), len(nonmembers)) < 2:
        raise UnsupportedError("balanced accuracy needs at least two members and two non-members")
    found = kept = 0
    for half in (0, 1):
        threshold = _best_threshold(members[half::2], nonmembers[half::2])
        found += int((members[1 - half :: 2] >= threshold).sum())
        kept += int((nonmembers[1 - half :: 2] < threshold).sum())
    rates = found / len(members), kept / len(nonmembers)
    intervals = rate_interval(found, len(members)), rate_interval(kept, len(nonmembers))
    return Estimate(sum(rates) / 2, *sum_interval((0.5, 0.5), rates, intervals))


def _best_threshold(members: Scores, nonmembers: Scores) -> float:
    curve = roc(members, nonmembers)
    return float(curve.thresholds[int((curve.tpr - curve.fpr).argmax())])


def _share_from(scores: Scores, thresholds: Floats) -> Floats:
    """Share of ``scores`` at or above each threshold."""
    return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)


def _require(members: Scores, nonmembers: Scores) -> None:
    for name, scores in (("members", members), ("non-members", nonmembers)):
        if len(scores) == 0:
            raise UnsupportedError(f"there are no scores of {name}")
        if np.isnan(scores).any():
            raise UnsupportedError(f"{int(np.isnan(scores).sum())} scores of {name} are NaN")
