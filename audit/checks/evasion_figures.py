"""Curve, breakdown by class and gallery of an evasion run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...attacks.statistics import rate_interval, rate_intervals
from ...reports.record import Chart, Figure, Gallery, Item, Line, Picture, Table
from .evasion_measures import Measured, ball_text, radius_text

_MOST_BARS = 30
_FINE = 40
"""Points of the curve where one run tells all of them."""


def charts(
    measured: Measured, classes: tuple[str, ...], adversarial: Tensor, attack: str, *, fine: bool = False
) -> Iterator[Figure]:
    """Robust accuracy against radius, and by class.

    Args:
        adversarial: predictions ``(n,)`` after the attack.
        fine: every radius is known, not only those examined: the attack looked for the smallest perturbation.
    """
    yield _curve(measured, attack, fine=fine)
    yield _by_class(measured, classes, adversarial)
    if len(classes) <= _MOST_BARS:
        yield _class_bars(measured, classes)


def _curve(measured: Measured, attack: str, *, fine: bool) -> Chart:
    n, largest = len(measured.y), measured.radii[-1]
    between = (largest * step / _FINE for step in range(1, _FINE if fine else 1))
    radii = (0.0, *sorted({*measured.radii, *between}))
    left = np.array([measured.survives(eps).sum() for eps in radii])
    low, high = rate_intervals(left, n)
    return Chart(
        id="curve",
        title=f"Robust accuracy against {measured.norm} radius",
        caption="At radius 0: clean accuracy. What breaks in a small ball counts as broken in larger ones. "
        "Band: 95 % interval.",
        x_label=f"{measured.norm} radius",
        y_label="robust accuracy",
        y_range=(0, 1),
        lines=(
            Line(
                name=attack,
                x=radii,
                y=tuple((left / n).tolist()),
                low=tuple(low.tolist()),
                high=tuple(high.tolist()),
            ),
        ),
    )


def _by_class(measured: Measured, classes: tuple[str, ...], adversarial: Tensor) -> Table:
    survives, fallen, after = measured.survives(measured.eps), measured.fallen, adversarial.numpy()
    rows = []
    for c, label in enumerate(classes):
        own = measured.y == c
        n = int(own.sum())
        if n == 0:
            rows.append((label, 0, None, None, None, None, None))
            continue
        left = int(survives[own].sum())
        taken_for = np.bincount(after[own & fallen], minlength=len(classes))
        likely = classes[int(taken_for.argmax())] if taken_for.any() else None
        rows.append((label, n, float(measured.correct[own].mean()), left / n, *rate_interval(left, n), likely))
    return Table(
        id="by_class",
        title=f"By class, {ball_text(measured.norm, measured.eps)}",
        caption="The interval is that of the robust accuracy; the last column is what most broken samples become.",
        columns=("class", "samples", "clean accuracy", "robust accuracy", "from", "to", "most become"),
        rows=tuple(rows),
    )


def _class_bars(measured: Measured, classes: tuple[str, ...]) -> Chart:
    present = [c for c in range(len(classes)) if (measured.y == c).any()]
    positions = tuple(float(i) for i in range(len(present)))
    survives = measured.survives(measured.eps)

    def shares(of: np.ndarray) -> tuple[float, ...]:
        return tuple(float(of[measured.y == c].mean()) for c in present)

    return Chart(
        id="class_bars",
        title="Accuracy by class, clean and under attack",
        style="bar",
        x_label="class",
        y_label="accuracy",
        y_range=(0, 1),
        categories=tuple(classes[c] for c in present),
        lines=(
            Line(name="clean", x=positions, y=shares(measured.correct)),
            Line(name=ball_text(measured.norm, measured.eps), x=positions, y=shares(survives)),
        ),
    )


def showcase(measured: Measured, at_most: int = 8) -> list[int]:
    """Positions of broken samples to show: each class's smallest perturbation first, then each one's next."""
    by_class: dict[int, list[int]] = defaultdict(list)
    rows = np.flatnonzero(measured.fallen)
    for row in rows[np.argsort(measured.distance[rows], kind="stable")]:
        by_class[int(measured.y[row])].append(int(row))
    ranked = [(place, measured.distance[row], row) for own in by_class.values() for place, row in enumerate(own)]
    return [row for _, _, row in sorted(ranked)[:at_most]]


def gallery_tensors(x: Tensor, x_adv: Tensor, rows: list[int], bounds: tuple[float, float]) -> dict[str, Tensor]:
    """The shown images ``(m, c, h, w)``, scaled from ``bounds`` to 0..1."""
    low, high = bounds
    return {"clean": (x[rows] - low) / (high - low), "adversarial": (x_adv[rows] - low) / (high - low)}


def gallery(
    measured: Measured,
    rows: list[int],
    names: Sequence[str],
    classes: tuple[str, ...],
    clean_logits: Tensor,
    adv_logits: Tensor,
    evidence: str,
) -> Gallery:
    """Clean image, adversarial image and their difference, with what the model says of each."""
    items = []
    for index, row in enumerate(rows):
        before, after = (_verdict(logits[row], classes) for logits in (clean_logits, adv_logits))
        size = f"{measured.norm} {radius_text(measured.norm, float(measured.distance[row]))}"
        items.append(Item(index=index, sample_id=str(names[row]), captions=(before, after, size)))
    return Gallery(
        id="gallery",
        title="Adversarial examples",
        caption="The smallest perturbations found, over the classes; prediction and confidence under each image. "
        "The difference is magnified.",
        evidence=evidence,
        pictures=(
            Picture(tensor="clean", title="clean"),
            Picture(tensor="adversarial", title="adversarial"),
            Picture(tensor="adversarial", title="difference", draw="difference", minus="clean"),
        ),
        items=tuple(items),
    )


def _verdict(logits: Tensor, classes: tuple[str, ...]) -> str:
    confidence, c = torch.softmax(logits.double(), 0).max(0)
    return f"{classes[int(c)]} {100 * float(confidence):.0f} %"
