"""Tables, charts and the gallery of a corruption run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from ...attacks.statistics import rate_intervals
from ...reports.record import Chart, Figure, Gallery, Item, Line, Picture, Table
from .corruption_measures import Measured, mean, spoken
from .images import verdict


def charts(measured: Measured, clean: float) -> Iterator[Figure]:
    """Accuracy against severity by group, by corruption, and every cell. ``clean`` is the clean accuracy."""
    yield _by_group(measured, clean)
    yield _bars(measured)
    yield _table(measured)
    yield _cells(measured)


def _by_group(measured: Measured, clean: float) -> Chart:
    lines = []
    for name, rows in measured.groups().items():
        means = [mean(measured.right[rows, s]) for s in range(len(measured.severities))]
        lines.append(
            Line(
                name=name,
                x=(0.0, *(float(s) for s in measured.severities)),
                y=(clean, *(m.value for m in means)),
                low=(clean, *(m.low for m in means)),
                high=(clean, *(m.high for m in means)),
            )
        )
    return Chart(
        id="by_group",
        title="Accuracy against severity",
        caption="Mean over the corruptions of each group; at severity 0: clean accuracy. Bands: 95 % intervals.",
        x_label="severity",
        y_label="accuracy",
        y_range=(0, 1),
        lines=tuple(lines),
    )


def _bars(measured: Measured) -> Chart:
    means = [measured.by_corruption(name) for name in measured.corruptions]
    return Chart(
        id="by_corruption",
        title="Accuracy under each corruption",
        caption="Mean over the severities examined.",
        style="bar",
        x_label="corruption",
        y_label="accuracy",
        y_range=(0, 1),
        categories=tuple(spoken(name) for name in measured.corruptions),
        lines=(
            Line(
                name="accuracy",
                x=tuple(float(i) for i in range(len(means))),
                y=tuple(m.value for m in means),
                low=tuple(m.low for m in means),
                high=tuple(m.high for m in means),
            ),
        ),
    )


def _table(measured: Measured) -> Table:
    rows = []
    for i, name in enumerate(measured.corruptions):
        own = measured.by_corruption(name)
        cells = (float(share) for share in measured.right[i].mean(-1))
        rows.append((spoken(name), *cells, own.value, own.low, own.high))
    return Table(
        id="corruptions",
        title="Accuracy by corruption and severity",
        caption="The interval (95 %) is that of the mean over severities.",
        columns=("corruption", *(f"severity {s}" for s in measured.severities), "mean", "from", "to"),
        rows=tuple(rows),
    )


def _cells(measured: Measured) -> Table:
    right = measured.right.sum(-1)
    low, high = rate_intervals(right, measured.n)
    rows = [
        (spoken(name), severity, int(right[i, j]) / measured.n, float(low[i, j]), float(high[i, j]))
        for i, name in enumerate(measured.corruptions)
        for j, severity in enumerate(measured.severities)
    ]
    return Table(
        id="cells",
        title="Every corruption and severity with its interval",
        caption=f"The worst first; 95 % intervals (Wilson), {measured.n} samples each.",
        columns=("corruption", "severity", "accuracy", "from", "to"),
        rows=tuple(sorted(rows, key=lambda row: row[2])),
    )


def shown_sample(clean: Tensor, y: Tensor, predictions: Tensor) -> int:
    """The sample to show: right on the clean image, and then wrong as often as right, as far as there is one."""
    wrong = (predictions != y).double().mean((0, 1)).numpy()
    return int(np.argmin(np.abs(wrong - 0.5) + 10.0 * (clean != y).numpy()))


def gallery(
    corruptions: Sequence[str],
    severities: Sequence[int],
    logits: Sequence[Tensor],
    classes: tuple[str, ...],
    name: str,
    evidence: str,
) -> Gallery:
    """One image under each corruption: rows are corruptions, columns the clean image and the severities.

    Args:
        logits: ``(corruptions, k)`` for each column.
        name: of the sample shown.
        evidence: path of the file with the tensors ``clean`` and ``severity_1`` and so on.
    """
    keys = ("clean", *(f"severity_{s}" for s in severities))
    items = [
        Item(
            index=i,
            sample_id=f"{spoken(corruption)} ({name})",
            captions=tuple(verdict(column[i], classes) for column in logits),
        )
        for i, corruption in enumerate(corruptions)
    ]
    return Gallery(
        id="gallery",
        title="One image under each corruption",
        caption="Prediction and confidence under each image.",
        evidence=evidence,
        pictures=tuple(Picture(tensor=key, title=key.replace("_", " ")) for key in keys),
        items=tuple(items),
    )
