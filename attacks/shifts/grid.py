"""Worst case over a grid of changes (Engstrom et al., arXiv 1712.02779)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..attack import Model
from ..engine import Progress
from ..errors import UnsupportedError
from ..losses import margin
from ..models import attacking, check_logits
from ..search import fooled

Point = tuple[float, ...]


class Shift(Protocol):
    """A finite family of changes to images in 0..1."""

    def points(self, channels: int) -> tuple[Point, ...]:
        """All parameter settings for images with so many channels, the one that changes nothing first."""
        ...

    def apply(self, x: Tensor, points: Tensor) -> Tensor:
        """Images ``(n, c, h, w)`` changed, each by its own row of ``points`` ``(n, p)``; the result is in 0..1."""
        ...

    def describe(self, point: Sequence[float]) -> str:
        """The change in words: ``rotated by 20 degrees``."""
        ...


@dataclass(frozen=True, slots=True)
class ShiftOutcome:
    """What :func:`evaluate_shift` found; tensors live on the CPU.

    Attributes:
        points: float32 ``(p, q)``, the grid.
        worst: int64 ``(n,)``, row of ``points``: the first that makes the model err; where none does, the one
            with the smallest margin; 0 where the clean input is misclassified.
        success: bool ``(n,)``, true where the model errs somewhere on the grid, clean inputs included.
        correct: bool ``(n,)``, whether the clean input is classified as labelled.
        x_worst: ``(n, c, h, w)``, the inputs at ``worst``.
        clean_logits, worst_logits: float32 ``(n, k)``.
        forwards: samples passed through the model.
        seconds: wall time.
    """

    points: Tensor
    worst: Tensor
    success: Tensor
    correct: Tensor
    x_worst: Tensor
    clean_logits: Tensor
    worst_logits: Tensor
    forwards: int
    seconds: float

    @property
    def robust_accuracy(self) -> float:
        """Share of samples classified correctly at every point of the grid."""
        return float((~self.success).double().mean())


@torch.no_grad()
def evaluate_shift(
    shift: Shift,
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> ShiftOutcome:
    """Tries every change on every sample until the model errs on it; needs labels and scores, no gradients.

    Deterministic, and independent of batch size but for the rounding of the model.

    Args:
        shift: the grid.
        model: maps images in 0..1 to logits ``(n, k)``; a module is put into eval mode and given back as found.
        x: float images ``(n, c, h, w)`` in 0..1.
        y: int64 ``(n,)``, labels.
        batch_size: images per forward pass.
        device: where to work; None: where the model's parameters are, else where ``x`` is.
        progress: called with (grid points done, all of them).

    Raises:
        UnsupportedError: for inputs that are no images in 0..1.
    """
    if x.dim() != 4 or not x.is_floating_point() or len(x) == 0:
        raise UnsupportedError(f"inputs are {x.dtype} of shape {tuple(x.shape)}: expected float images (n, c, h, w)")
    if not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise UnsupportedError(f"inputs span {float(x.min()):g} to {float(x.max()):g}: scale them to 0..1")
    began = time.monotonic()
    with attacking(model):
        search = _Search(shift, model, x, y.cpu(), batch_size, _device(model, x) if device is None else device)
        search.run(progress)
        x_worst, worst_logits = search.at_worst()
    return ShiftOutcome(
        points=search.points,
        worst=search.worst,
        success=search.success,
        correct=fooled(search.clean_logits, search.y, targeted=False).logical_not(),
        x_worst=x_worst,
        clean_logits=search.clean_logits,
        worst_logits=worst_logits,
        forwards=search.forwards,
        seconds=time.monotonic() - began,
    )


class _Search:
    """The state of one search; everything but the batch at hand is on the CPU."""

    def __init__(
        self, shift: Shift, model: Model, x: Tensor, y: Tensor, batch_size: int, device: torch.device | str
    ) -> None:
        self.shift, self.model, self.x, self.y = shift, model, x, y
        self.batch_size, self.device, self.forwards = batch_size, device, 0
        self.points = torch.tensor(shift.points(x.shape[1]))
        self.clean_logits = torch.cat([self._logits(part.to(device)) for part in x.split(batch_size)])
        self.success = fooled(self.clean_logits, y, targeted=False)
        self.worst = torch.zeros(len(x), dtype=torch.int64)
        self.margin = margin(self.clean_logits, y)

    def run(self, progress: Progress | None) -> None:
        done = 1
        while done < len(self.points):
            active = (~self.success).nonzero().squeeze(1)
            if len(active) == 0:
                done = len(self.points)
            else:
                chunk = torch.arange(done, min(done + max(self.batch_size // len(active), 1), len(self.points)))
                for rows in active.split(self.batch_size):
                    self._try(rows, chunk)
                done += len(chunk)
            if progress is not None:
                progress(done, len(self.points))

    def _try(self, rows: Tensor, chunk: Tensor) -> None:
        """Samples ``rows`` at all points of ``chunk``: the first that fools counts, else the smallest margin."""
        pairs = torch.cartesian_prod(rows, chunk)
        logits = self._logits(self._changed(pairs[:, 0], pairs[:, 1]))
        labels = self.y[pairs[:, 0]]
        hit = fooled(logits, labels, targeted=False).view(len(rows), len(chunk))
        value = margin(logits, labels).view(len(rows), len(chunk)).nan_to_num(-float("inf"))
        first, found = hit.to(torch.uint8).argmax(1), hit.any(1)
        place = torch.where(found, first, value.argmax(1))
        best = value.gather(1, place[:, None]).squeeze(1)
        better = found | (best > self.margin[rows])
        self.worst[rows[better]] = chunk[place[better]]
        self.margin[rows[better]] = best[better]
        self.success[rows] = found

    def at_worst(self) -> tuple[Tensor, Tensor]:
        """The inputs at the worst points, and logits on them; untouched inputs where that point is the first."""
        parts = []
        for rows in torch.arange(len(self.x)).split(self.batch_size):
            changed = self._changed(rows, self.worst[rows]).cpu()
            same = (self.worst[rows] == 0).view(-1, 1, 1, 1)
            x = torch.where(same, self.x[rows.to(self.x.device)].cpu(), changed)
            parts.append((x, self._logits(x.to(self.device))))
        return torch.cat([x for x, _ in parts]), torch.cat([logits for _, logits in parts])

    def _changed(self, rows: Tensor, points: Tensor) -> Tensor:
        x = self.x[rows.to(self.x.device)].to(self.device)
        return self.shift.apply(x, self.points[points].to(x.device, x.dtype))

    def _logits(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        return check_logits(self.model(x), len(x)).float().cpu()


def product(axes: Sequence[Sequence[float]], neutral: Point) -> tuple[Point, ...]:
    """All combinations, ``neutral`` first and then the most extreme ones first: they end most searches early."""
    reach = [max(max(abs(value - zero) for value in axis), 1e-12) for axis, zero in zip(axes, neutral, strict=True)]

    def extremity(point: Point) -> float:
        return sum(abs(value - zero) / far for value, zero, far in zip(point, neutral, reach, strict=True))

    others = {tuple(float(value) for value in point) for point in itertools.product(*axes)} - {neutral}
    return (neutral, *sorted(others, key=lambda point: (-extremity(point), point)))


def _device(model: Model, x: Tensor) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return x.device if parameter is None else parameter.device
