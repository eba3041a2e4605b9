"""What a reader must know about a classifier's performance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...attacks.statistics import rate_interval
from ...reports.record import Finding, Metric
from . import standards
from .metrics import by_name, percent
from .performance_measures import Measured


def warnings(measured: Measured, known: int) -> Iterator[str]:
    """``known``: how many classes the data have; what comes after them is no class, but no answer."""
    absent = [measured.classes[c] for c in np.flatnonzero(measured.counts.support[:known] == 0)]
    if absent:
        yield f"No samples of {len(absent)} classes ({_some(absent)}): averages over classes leave them out."
    never = [measured.classes[c] for c in measured.present if measured.counts.predicted[c] == 0]
    if never:
        yield f"Never predicted: {_some(never)}. Their precision is undefined and counts as 0."
    if len(measured.present) < 2:
        yield "ROC AUC is undefined: all samples are of one class."
    few = [measured.classes[c] for c in measured.present if measured.counts.support[c] < 10]
    if few:
        yield f"Fewer than 10 samples of {_some(few)}: figures by class are coarse."


def _some(names: list[str], at_most: int = 5) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def findings(measured: Measured) -> Iterator[Finding]:
    metrics = by_name(measured.metrics)
    yield from _guessing(measured, metrics["accuracy"])
    yield from _miscalibration(measured, metrics["ece"])
    yield from _classes_behind(measured)
    yield from _imbalance(measured)


def _guessing(measured: Measured, accuracy: Metric) -> Iterator[Finding]:
    largest = int(measured.counts.support.argmax())
    share = measured.counts.support[largest] / measured.n
    if len(measured.present) > 1 and accuracy.ci_low is not None and accuracy.ci_low <= share:
        yield Finding(
            severity="high",
            title="No better than always naming the most frequent class",
            detail=f"Always answering {measured.classes[largest]} would be right on {percent(share)} of the samples; "
            f"the lower end of the model's accuracy is {percent(accuracy.ci_low)}.",
            remedy="Check labels, preprocessing and weights before reading any other figure.",
            standards=standards.ACCURACY,
        )


def _miscalibration(measured: Measured, ece: Metric) -> Iterator[Finding]:
    if ece.value is None or ece.ci_low is None or ece.ci_low <= 0.05:
        return
    over = measured.calibration.gaps.sum() < 0
    yield Finding(
        severity="medium" if ece.ci_low > 0.1 else "low",
        title=f"The model is {'over' if over else 'under'}confident",
        detail=f"Confidence and accuracy differ by {percent(ece.value)} on average (at least {percent(ece.ci_low)}).",
        remedy="Calibrate on held-out data (temperature scaling, arXiv 1706.04599) before using confidences.",
        standards=standards.ACCURACY,
    )


def _classes_behind(measured: Measured) -> Iterator[Finding]:
    """Classes recalled ten points or more less often than the others; surely so (Bonferroni over classes)."""
    hits, support = measured.counts.hits, measured.counts.support
    confidence = 1 - 0.05 / max(1, len(measured.present))
    for c in measured.present if len(measured.present) > 1 else ():
        _, high = rate_interval(int(hits[c]), int(support[c]), confidence)
        others, n_others = int(hits.sum() - hits[c]), int(support.sum() - support[c])
        low, _ = rate_interval(others, n_others, confidence)
        gap = float(others / n_others - hits[c] / support[c])
        if high < low and gap >= 0.1:
            yield Finding(
                severity="high" if gap >= 0.4 else "medium",
                title=f"Class {measured.classes[c]} is recognised far less often than the others",
                detail=f"{percent(float(hits[c] / support[c]))} of its {int(support[c])} samples against "
                f"{percent(others / n_others)} of the rest; most often taken for {_taken_for(measured, c)}.",
                remedy="Look at its samples and labels; collect more, or weight the class in training.",
                standards=standards.ACCURACY,
            )


def _taken_for(measured: Measured, c: int) -> str:
    row = measured.table[c].copy()
    row[c] = -1
    return measured.classes[int(row.argmax())]


def _imbalance(measured: Measured) -> Iterator[Finding]:
    support = measured.counts.support[measured.present]
    if len(support) > 1 and support.max() >= 3 * support.min():
        small, large = measured.present[support.argmin()], measured.present[support.argmax()]
        yield Finding(
            severity="info",
            title="The audited classes are of very different size",
            detail=f"{measured.classes[large]} has {int(support.max())} samples, {measured.classes[small]} "
            f"{int(support.min())}: accuracy speaks mostly for the large ones. Balanced accuracy and F1 do not.",
        )
