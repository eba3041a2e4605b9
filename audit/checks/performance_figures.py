"""Tables and charts of a classifier's performance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...attacks.statistics import rate_interval, rate_intervals
from ...reports.record import Chart, Figure, Line, Matrix, Table
from .classification import Calibration
from .performance_measures import Measured

_LARGEST_MATRIX = 40


def figures(measured: Measured) -> Iterator[Figure]:
    yield _by_class(measured)
    if len(measured.classes) <= _LARGEST_MATRIX:
        yield Matrix(
            id="confusion",
            title="Confusion matrix",
            caption="Counts; rows are the true class, columns what the model said.",
            row_label="true class",
            column_label="predicted class",
            labels=measured.classes,
            values=tuple(tuple(float(cell) for cell in row) for row in measured.table),
        )
    yield _confused_pairs(measured)
    yield _reliability(measured.calibration)
    yield _confidence_counts(measured.calibration)


def _by_class(measured: Measured) -> Table:
    counts = measured.counts
    rows = []
    for c, label in enumerate(measured.classes):
        if counts.support[c] == 0:
            rows.append((label, 0, None, None, None, None, None))
            continue
        low, high = rate_interval(int(counts.hits[c]), int(counts.support[c]))
        scores = (float(counts.recall[c]), low, high, float(counts.precision[c]), float(counts.f1[c]))
        rows.append((label, int(counts.support[c]), *scores))
    return Table(
        id="by_class",
        title="By class",
        caption="Recall is the share of the class that is found, with its 95 % interval.",
        columns=("class", "samples", "recall", "from", "to", "precision", "F1"),
        rows=tuple(rows),
    )


def _confused_pairs(measured: Measured, at_most: int = 10) -> Table:
    off = measured.table.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:at_most]
    cells = [divmod(int(cell), len(measured.classes)) for cell in order]
    support = measured.counts.support
    return Table(
        id="confused_pairs",
        title="Most frequent mistakes",
        columns=("true class", "predicted class", "samples", "share of the true class"),
        rows=tuple(
            (measured.classes[a], measured.classes[b], int(off[a, b]), float(off[a, b] / support[a]))
            for a, b in cells
            if off[a, b] > 0
        ),
    )


def _reliability(bins: Calibration) -> Chart:
    used = np.flatnonzero(bins.counts)
    low, high = rate_intervals(bins.hits[used], bins.counts[used])
    return Chart(
        id="reliability",
        title="Reliability",
        caption="On the diagonal, confidence is honest; below it the model is overconfident. Band: 95 % interval.",
        x_label="mean confidence",
        y_label="accuracy",
        x_range=(0, 1),
        y_range=(0, 1),
        diagonal=True,
        lines=(
            Line(
                name="accuracy",
                x=tuple(bins.confidence[used].tolist()),
                y=tuple((bins.hits[used] / bins.counts[used]).tolist()),
                low=tuple(low.tolist()),
                high=tuple(high.tolist()),
            ),
        ),
    )


def _confidence_counts(bins: Calibration) -> Chart:
    positions = tuple(float(i) for i in range(len(bins.counts)))
    return Chart(
        id="confidence_counts",
        title="Samples by confidence",
        caption="How many samples stand behind each point of the reliability curve.",
        style="bar",
        x_label="confidence up to",
        y_label="samples",
        categories=tuple(f"{edge:.2f}" for edge in bins.edges[1:]),
        lines=(Line(name="samples", x=positions, y=tuple(float(count) for count in bins.counts)),),
    )
