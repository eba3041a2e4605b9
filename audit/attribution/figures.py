"""The attribution check's table, curves and galleries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...reports.record import Chart, Evidence, Figure, Gallery, Item, Line, Metric, Picture, Table
from .examine import Examined
from .methods import LABELS, Method
from .scores import SCORES, mean_interval

_TABLE = (
    "deletion_auc",
    "insertion_auc",
    "infidelity",
    "sensitivity_max",
    "top_overlap_attacked",
    "top_overlap_noise",
    "randomized_similarity",
    "sparseness",
    "border_share",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of the galleries, in words."""

    sample_id: str
    label: str
    predicted: str
    confidence: float
    attacked: str
    attacked_confidence: float


def score_table(methods: Sequence[Method], metrics: Mapping[str, Metric]) -> Table:
    """Methods by scores, each method followed by its random control."""

    def cells(method: Method, suffix: str) -> list[float | None]:
        values = [metrics[f"{method}_{name}{suffix}"].value for name in _TABLE]
        return [None if value is None else round(value, 3) for value in values]

    rows = []
    for method in methods:
        rows.append((LABELS[method], *cells(method, "")))
        rows.append((f"{LABELS[method]}: random control", *cells(method, "_random")))
    arrows = {True: " ↑", False: " ↓", None: ""}
    heads = [SCORES[name].label + arrows[SCORES[name].higher_is_better] for name in _TABLE]
    return Table(
        id="scores",
        title="How far the explanations can be believed",
        caption="An arrow says which way is better. A method whose numbers are no better than those of its random "
        "control (noise as coarse as its own maps) explains nothing.",
        columns=("Method", *heads),
        rows=tuple(rows),
    )


def curve_charts(examined: Mapping[Method, tuple[Examined, Examined]], baseline: str, seed: int) -> Iterator[Chart]:
    """Deletion and insertion: each method, and each distinct random control dashed."""
    captions = {
        "deletion": f"The most relevant pixels are replaced first (by the {baseline} baseline). A faithful "
        "explanation makes the probability fall early, below the random control.",
        "insertion": f"The most relevant pixels are put back first (onto the {baseline} baseline). A faithful "
        "explanation makes the probability rise early, above the random control.",
    }
    for mode in ("deletion", "insertion"):
        yield Chart(
            id=mode,
            title=f"{mode.capitalize()} curves",
            caption=captions[mode],
            x_label="share of pixels",
            y_label="probability of the predicted class",
            x_range=(0, 1),
            y_range=(0, 1),
            lines=tuple(_lines(examined, mode, seed)),
        )


def _lines(
    examined: Mapping[Method, tuple[Examined, Examined]], mode: Literal["deletion", "insertion"], seed: int
) -> Iterator[Line]:
    for method, (own, _) in examined.items():
        yield _line(LABELS[method], getattr(own, mode), seed, dashed=False)
    shared: dict[int, tuple[Examined, list[str]]] = {}
    for method, (_, control) in examined.items():
        shared.setdefault(id(control), (control, []))[1].append(LABELS[method])
    for control, names in shared.values():
        name = "Random" if len(shared) == 1 else f"Random, as coarse as {' and '.join(names)}"
        yield _line(name, getattr(control, mode), seed, dashed=True)


def _line(name: str, curves: Tensor, seed: int, *, dashed: bool) -> Line:
    steps = curves.shape[1] - 1
    low, high = mean_interval(curves, seed)
    return Line(
        name=name,
        x=tuple(i / steps for i in range(steps + 1)),
        y=tuple(curves.double().mean(0).tolist()),
        low=low,
        high=high,
        dashed=dashed,
    )


def gallery(method: Method, own: Examined, rows: Sequence[Row], index: Sequence[int], evidence: Evidence) -> Gallery:
    """Clean image, its map, attacked image, its map, for the samples at ``index`` of the scene."""
    overlap = own.scores["top_overlap_attacked"]
    items = tuple(
        Item(
            index=place,
            sample_id=row.sample_id,
            captions=(
                f"labelled {row.label}, predicted {row.predicted} ({row.confidence:.0%})",
                f"explains {row.predicted}",
                f"predicted {row.attacked} ({row.attacked_confidence:.0%})",
                f"explains {row.attacked}; {_overlap(float(overlap[i]))}",
            ),
        )
        for place, (row, i) in enumerate(zip(rows, index, strict=True))
    )
    return Gallery(
        id=f"gallery-{method}",
        title=f"{LABELS[method]}: clean and attacked",
        caption="Where the evidence for the predicted class lies, before and after the attack.",
        evidence=evidence.path,
        pictures=(
            Picture(tensor="x", title="Clean image"),
            Picture(tensor=f"{method}.clean", title="Why, clean", draw="heat"),
            Picture(tensor="x_adv", title="Attacked image"),
            Picture(tensor=f"{method}.attacked", title="Why, attacked", draw="heat"),
        ),
        items=items,
    )


def _overlap(value: float) -> str:
    return "not changed by the attack" if math.isnan(value) else f"top-pixel overlap {value:.2f}"


def figures(
    examined: Mapping[Method, tuple[Examined, Examined]],
    metrics: Mapping[str, Metric],
    rows: Sequence[Row],
    index: Sequence[int],
    evidence: Evidence,
    baseline: str,
    seed: int,
) -> Iterator[Figure]:
    """All figures, the table first."""
    yield score_table(tuple(examined), metrics)
    yield from curve_charts(examined, baseline, seed)
    if rows:
        for method, (own, _) in examined.items():
            yield gallery(method, own, rows, index, evidence)
