"""Table, chart and gallery of the shift check."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...attacks.statistics import rate_interval
from ...reports.record import Chart, Gallery, Item, Line, Picture, Table
from .images import Images, verdict
from .shift_search import Searched

_SHOWN = 8


def bars(images: Images, clean: Tensor, searched: Mapping[str, Searched]) -> Chart:
    """Clean accuracy beside the robust accuracy of each kind. ``clean``: bool ``(n,)``, right without a change."""
    kept = {"clean": clean, **{kind: ~one.success for kind, one in searched.items()}}
    rates = [(int(right.sum()), *rate_interval(int(right.sum()), len(images))) for right in kept.values()]
    return Chart(
        id="by_kind",
        title="Accuracy in the worst case of each kind of change",
        caption="Clean: no change. Elsewhere a sample counts when it is right at every point of the grid.",
        style="bar",
        x_label="change",
        y_label="accuracy",
        y_range=(0, 1),
        categories=tuple(kept),
        lines=(
            Line(
                name="accuracy",
                x=tuple(float(i) for i in range(len(rates))),
                y=tuple(right / len(images) for right, _, _ in rates),
                low=tuple(low for _, low, _ in rates),
                high=tuple(high for _, _, high in rates),
            ),
        ),
    )


def single_changes(images: Images, searched: Mapping[str, Searched]) -> Table:
    """Accuracy when one parameter alone is changed, the same way for all samples; the worst first."""
    rows = []
    for kind, one in searched.items():
        for point, predictions in zip(one.singles, one.single_predictions, strict=True):
            right = int((predictions == images.y).sum())
            words = one.shift.describe([round(value, 6) for value in one.points[point].tolist()])
            rows.append((words, kind, right / len(images), *rate_interval(right, len(images))))
    return Table(
        id="single_changes",
        title="Accuracy under one change at a time",
        caption=f"The same change for all {len(images)} samples; 95 % intervals (Wilson); the worst first.",
        columns=("change", "kind", "accuracy", "from", "to"),
        rows=tuple(sorted(rows, key=lambda row: row[2])),
    )


def showcase(clean: Tensor, searched: Mapping[str, Searched]) -> list[tuple[str, int]]:
    """Kind and row of broken samples to show, the kinds in turn, no sample twice."""
    queues = {kind: (clean & one.success).nonzero().flatten().tolist() for kind, one in searched.items()}
    shown: list[tuple[str, int]] = []
    while len(shown) < _SHOWN and any(queues.values()):
        for kind, queue in queues.items():
            fresh = [row for row in queue if row not in {other for _, other in shown}]
            queues[kind] = fresh[1:]
            shown += [(kind, fresh[0])] if fresh and len(shown) < _SHOWN else []
    return shown


def gallery_tensors(
    images: Images, searched: Mapping[str, Searched], shown: list[tuple[str, int]]
) -> dict[str, Tensor]:
    """``(m, c, h, w)`` each: the clean and the changed images shown."""
    changed = torch.stack([searched[kind].x_worst[row] for kind, row in shown])
    return {"clean": images.x[[row for _, row in shown]], "changed": changed}


def gallery(
    images: Images, clean_logits: Tensor, searched: Mapping[str, Searched], shown: list[tuple[str, int]], evidence: str
) -> Gallery:
    """Clean and changed image, with what the model says of each and what was changed."""
    items = []
    for index, (kind, row) in enumerate(shown):
        one = searched[kind]
        words = one.shift.describe([round(value, 6) for value in one.points[one.worst[row]].tolist()])
        before, after = (verdict(logits[row], images.samples.classes) for logits in (clean_logits, one.logits))
        captions = (before, f"{after}; {words}")
        items.append(Item(index=index, sample_id=str(images.samples.names[row]), captions=captions))
    return Gallery(
        id="gallery",
        title="Changes that make the model err",
        caption="The first change found for each sample; prediction and confidence under each image.",
        evidence=evidence,
        pictures=(Picture(tensor="clean", title="clean"), Picture(tensor="changed", title="changed")),
        items=tuple(items),
    )
