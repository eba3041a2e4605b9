"""The measures of a classifier as functions of arrays: averages over classes, ranking, probabilities, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import log_softmax

from ...attacks.statistics import bootstrap_counts, logit_interval, placements

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts ``(..., k)`` from which precision, recall and F1 follow.

    Attributes:
        hits: samples of the class predicted as such.
        support: samples of the class.
        predicted: samples predicted as the class.
    """

    hits: Floats
    support: Floats
    predicted: Floats

    @property
    def precision(self) -> Floats:
        """``(..., k)``; 0 for a class that is never predicted."""
        return self.hits / np.maximum(self.predicted, 1)

    @property
    def recall(self) -> Floats:
        """``(..., k)``; 0 for a class without samples."""
        return self.hits / np.maximum(self.support, 1)

    @property
    def f1(self) -> Floats:
        """``(..., k)``; 0 where the class is neither present nor predicted."""
        return 2 * self.hits / np.maximum(self.support + self.predicted, 1)

    def averages(self) -> dict[str, Floats]:
        """Macro averages (classes with samples, equal weight) and averages weighted by samples, each ``(...)``."""
        present = self.support > 0
        share = self.support / self.support.sum(-1, keepdims=True)
        result = {}
        for name, values in (("precision", self.precision), ("recall", self.recall), ("f1", self.f1)):
            result[f"{name}_macro"] = (values * present).sum(-1) / present.sum(-1)
            result[f"{name}_weighted"] = (values * share).sum(-1)
        return result


def confusion(y: Ints, prediction: Ints, k: int) -> Ints:
    """Counts ``(k, k)``, rows the true class, columns the predicted one."""
    return np.bincount(y * k + prediction, minlength=k * k).reshape(k, k).astype(np.int64)


def class_counts(table: Ints) -> ClassCounts:
    """Counts by class from a confusion matrix ``(k, k)``."""
    counts = table.astype(np.float64)
    return ClassCounts(np.diagonal(counts), counts.sum(1), counts.sum(0))


def resampled_counts(table: Ints, resamples: int = 1000, seed: int = 0) -> ClassCounts:
    """Counts by class ``(resamples, k)`` as resampling the samples would give them, from the confusion matrix alone."""
    rows, columns = np.nonzero(table)
    draws = bootstrap_counts(table[rows, columns], resamples, seed).astype(np.float64)
    cells, k = np.arange(len(rows)), len(table)

    def summed(classes: Ints, cells: Ints) -> Floats:
        members = csr_array((np.ones(len(cells)), (cells, classes)), shape=(len(rows), k))
        return draws @ members

    on = rows == columns
    return ClassCounts(summed(rows[on], cells[on]), summed(rows, cells), summed(columns, cells))


def rank_of_label(logits: NDArray[np.floating], y: Ints) -> Ints:
    """Place ``(n,)`` of the true class in the order of logits, 0 the highest; among equals the lower class first."""
    own = logits[np.arange(len(y)), y][:, None]
    earlier = np.arange(logits.shape[1])[None, :] < y[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def log_probabilities(logits: NDArray[np.floating]) -> Floats:
    """Log of softmax ``(n, k)`` in double precision, so that no probability becomes 0."""
    return log_softmax(logits.astype(np.float64), axis=1)


def brier(probabilities: Floats, y: Ints) -> Floats:
    """Squared distance ``(n,)`` of the probabilities from the one-hot label, 0..2 (Brier, 1950)."""
    errors = probabilities.copy()
    errors[np.arange(len(y)), y] -= 1
    return (errors**2).sum(1)


def macro_auc(probabilities: Floats, y: Ints) -> tuple[float, tuple[float, float]]:
    """Mean one-vs-rest ROC AUC over the classes with samples, and its interval; NaN when only one class has any.

    The variance is that of the mean of each sample's influence on all the AUCs (DeLong et al., 1988, extended to a
    macro average), so that one sample's part in several AUCs is accounted for.
    """
    n, k = probabilities.shape
    present = np.unique(y)
    if len(present) < 2:
        return float("nan"), (float("nan"), float("nan"))
    # Of two classes one AUC says it all, and taking the second avoids ties made by rounding 1 - p.
    chosen = present[-1:] if k == 2 else present
    influence = np.zeros(n)
    values = []
    for c in chosen:
        own = y == c
        of_own, of_rest = placements(probabilities[own, c], probabilities[~own, c])
        value = of_own.mean()
        influence[own] += (of_own - value) * n / own.sum()
        influence[~own] += (of_rest - value) * n / (~own).sum()
        values.append(value)
    value = float(np.mean(values))
    variance = float(np.mean((influence / len(chosen)) ** 2)) / n
    smallest = int(np.bincount(y)[present].min())
    return value, logit_interval(value, variance, smallest)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence against accuracy in equal-width bins; arrays ``(bins,)``, zero in empty bins.

    Attributes:
        edges: ``(bins + 1,)``; a bin holds confidences above its lower and up to its upper edge.
        counts: samples in each bin.
        confidence: their mean confidence.
        hits: how many of them are classified correctly.
        gaps: ``(n, bins)``, correct minus confidence of each sample, in the column of its bin.
    """

    edges: Floats
    counts: Ints
    confidence: Floats
    hits: Ints
    gaps: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over samples of ``|accuracy - confidence|`` of their bin, 0..1."""
        return float(np.abs(self.gaps.sum(0)).sum() / len(self.gaps))


def calibration(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Reliability of confidences ``(n,)`` in 0..1 (Guo et al., arXiv 1706.04599)."""
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    sums = np.bincount(bin_of, confidence, minlength=bins)
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), bin_of] = correct - confidence
    hits = np.bincount(bin_of[correct], minlength=bins)
    return Calibration(edges, counts, sums / np.maximum(counts, 1), hits, gaps)
