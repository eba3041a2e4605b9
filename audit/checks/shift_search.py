"""Runs the grids of the shift check and keeps what ``verify`` needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attacks.shifts.grid import Shift, evaluate_shift
from .base import Claim, Context
from .images import Images, compact
from .outputs import require_finite


@dataclass(frozen=True, slots=True)
class Searched:
    """One kind of change, after the search.

    Attributes:
        points: ``(p, q)``, the grid.
        worst: int64 ``(n,)``, row of ``points`` that broke the sample, or comes closest to it.
        success: bool ``(n,)``, whether the model errs somewhere on the grid.
        x_worst: ``(n, c, h, w)``; logits: ``(n, k)`` on it.
        singles: int64 ``(s,)``, rows of ``points`` where one parameter differs from no change; all were tried on
            all samples.
        single_predictions: int64 ``(s, n)``.
    """

    shift: Shift
    points: Tensor
    worst: Tensor
    success: Tensor
    x_worst: Tensor
    logits: Tensor
    singles: Tensor
    single_predictions: Tensor
    forwards: int

    def evidence(self, kind: str, k: int) -> dict[str, Tensor]:
        """Tensors for the evidence file."""
        return {
            f"{kind}_points": self.points,
            f"{kind}_worst": self.worst,
            f"{kind}_success": self.success,
            f"{kind}_single_predictions": compact(self.single_predictions, k),
        }


def search(shift: Shift, images: Images, batch_size: int | None, context: Context) -> Searched:
    """The worst case over the grid, and every change of a single parameter on its own.

    Raises:
        ModelError: when logits at the worst point or under a single change are NaN or infinite.
    """
    reported = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        share = len(images) * done / total
        context.progress.advance(share - reported)
        reported = share

    outcome = evaluate_shift(
        shift,
        images.model,
        images.x,
        images.y,
        batch_size=batch_size or 256,
        device=images.target.device,
        progress=report,
    )
    require_finite(outcome.worst_logits, images.samples)
    singles = single_changes(outcome.points)
    predictions = images.y.new_empty(len(singles), len(images))
    for row, point in enumerate(singles):
        predictions[row] = applied(shift, images, outcome.points[point], batch_size).argmax(1)
    return Searched(
        shift=shift,
        points=outcome.points,
        worst=outcome.worst,
        success=outcome.success,
        x_worst=outcome.x_worst,
        logits=outcome.worst_logits,
        singles=singles,
        single_predictions=predictions,
        forwards=outcome.forwards + len(singles) * len(images),
    )


def single_changes(points: Tensor) -> Tensor:
    """Rows of ``points`` ``(p, q)`` that differ from the first in exactly one parameter."""
    return ((points != points[0]).sum(1) == 1).nonzero().squeeze(1)


def applied(shift: Shift, images: Images, point: Tensor, batch_size: int | None) -> Tensor:
    """Logits ``(n, k)`` of all images under one change, or under one each when ``point`` is ``(n, q)``."""
    points = point.expand(len(images), -1)
    parts = []
    for rows in torch.arange(len(images)).split(batch_size or 256):
        x = images.x[rows].to(images.target.device)
        changed = shift.apply(x, points[rows].to(x.device))
        parts.append(images.select(rows).logits(changed, None))
    return torch.cat(parts)


def verify_search(
    kind: str, shift: Shift, images: Images, recorded: Mapping[str, Tensor], batch_size: int | None
) -> Iterator[Claim]:
    """Whether grid, errors and single changes come out as recorded."""
    points, success = torch.tensor(shift.points(images.x.shape[1])), recorded[f"{kind}_success"]
    same = torch.equal(points, recorded[f"{kind}_points"])
    yield Claim(f"the {kind} changes are those configured", same)
    if not same:
        return
    rows = success.nonzero().squeeze(1)
    hits = 0
    if len(rows):
        fallen = images.select(rows)
        chosen = points[recorded[f"{kind}_worst"][rows]]
        # A sample misclassified as it is has the first point, which changes nothing.
        hits = int(errs(applied(shift, fallen, chosen, batch_size), fallen.y).sum())
    yield Claim(f"the model errs under the recorded {kind} changes", hits == len(rows), f"{hits} of {len(rows)}")
    again = [applied(shift, images, points[point], batch_size) for point in single_changes(points)]
    predicted = recorded[f"{kind}_single_predictions"].long()
    agree = sum(int(predicts(z, own).sum()) for z, own in zip(again, predicted, strict=True))
    whole = agree == predicted.numel()
    yield Claim(f"the model predicts as recorded under single {kind} changes", whole, f"{agree} of {predicted.numel()}")


def predicts(logits: Tensor, classes: Tensor, slack: float = 1e-3) -> Tensor:
    """Bool ``(n,)``: whether logits ``(n, k)`` choose ``classes`` ``(n,)``, a near tie counting."""
    own = logits.gather(1, classes[:, None])[:, 0]
    return logits.amax(1) - own <= slack * logits.abs().amax(1).clamp_min(1)


def errs(logits: Tensor, y: Tensor, slack: float = 1e-3) -> Tensor:
    """Bool ``(n,)``: whether logits ``(n, k)`` miss the label ``y`` ``(n,)``, a near tie counting."""
    rival = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    return logits.gather(1, y[:, None])[:, 0] - rival <= slack * logits.abs().amax(1).clamp_min(1)
