"""Sigma-zero: gradient descent on a smooth stand-in for the number of changed features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Model
from ..errors import UnsupportedError
from ..losses import carlini_wagner, margin
from ..search import fooled, forward, input_gradient
from ..threat import Norm, Threat
from .adam import Adam
from .minimum_norm import Closest, MinimumNorm, column, cosine


@dataclass(frozen=True, slots=True)
class SigmaZero(MinimumNorm):
    """https://arxiv.org/abs/2402.01879, l0.

    Descends, by Adam as in the authors' code, on the margin plus ``sum d^2 / (d^2 + sigma)`` over the perturbation's
    entries d, their number divided out. Entries below a threshold, which rises while the model is fooled and falls
    while it is not, become zero. Of what was found, the smallest entries are undone by bisection at the end; the rest
    are pushed to the bounds, which costs nothing in l0, and undone one by one where the model is fooled without them.

    Args:
        steps: gradient steps, >= 1.
        sigma: how sharply the stand-in tells zero from nonzero; smaller is sharper.
        step_size: largest change of an entry in the first step, as a share of the bounds' width; annealed to a
            tenth.
        threshold: of the first step, as a share of the bounds' width.
        threshold_rate: change of the threshold in the first step.
        prunings: how many entries to try to undo one by one, those that matter least first; a forward pass each.
    """

    steps: int = 300
    sigma: float = 1e-3
    step_size: float = 1.0
    threshold: float = 0.3
    threshold_rate: float = 0.01
    prunings: int = 16

    norms: ClassVar[tuple[Norm, ...]] = ("l0",)

    def __post_init__(self) -> None:
        if self.steps < 1 or min(self.sigma, self.step_size, self.threshold_rate) <= 0 or self.threshold < 0:
            raise UnsupportedError("SigmaZero needs steps >= 1, positive sigma, step_size and rate, and threshold >= 0")
        if self.prunings < 0:
            raise UnsupportedError(f"prunings of SigmaZero is {self.prunings}: it must be at least 0")

    def _search(self, model: Model, x: Tensor, y: Tensor, threat: Threat) -> Closest:
        closest = Closest(x, threat)
        low, high = threat.bounds
        width = high - low
        adam = Adam(x)
        delta, threshold = torch.zeros_like(x), torch.full_like(closest.distance, self.threshold)
        for step in range(self.steps):
            point = x + delta
            logits, _, gradient = input_gradient(model, point, lambda z: _shortfall(z, y, targeted=threat.targeted))
            hit = fooled(logits, y, targeted=threat.targeted)
            closest.record(point, hit)
            rate = cosine(1.0, 0.1, step, self.steps)
            gradient = _largest_one(gradient + self._sparsity_gradient(delta / width) / x[0].numel())
            delta = (point - self.step_size * rate * width * adam.direction(gradient)).clamp_(low, high) - x
            threshold = (threshold + self.threshold_rate * rate * torch.where(hit, 1.0, -1.0)).clamp(0, 1)
            delta = torch.where(delta.abs() < column(threshold * width, x), 0.0, delta)
        closest.record(x + delta, fooled(forward(model, x + delta), y, targeted=threat.targeted))
        closest.tighten(model, y)
        if self.prunings:
            self._prune(model, closest, y)
        return closest

    def _prune(self, model: Model, closest: Closest, y: Tensor) -> None:
        """Pushes what is changed to the bounds, then undoes it one by one where the model is fooled without."""
        rows = closest.found.nonzero().squeeze(1)
        if len(rows) == 0:
            return
        threat, x, point, label = closest.threat, closest.x[rows], closest.x_adv[rows], y[rows]
        low, high = threat.bounds
        sign = -1.0 if threat.targeted else 1.0
        _, lead, gradient = input_gradient(model, point, lambda z: sign * margin(z, label))
        changed = point != x
        pushed = torch.where(changed & (gradient != 0), torch.where(gradient > 0, high, low), point)
        logits = forward(model, pushed)
        further = fooled(logits, label, targeted=threat.targeted) & (sign * margin(logits, label) > lead)
        point = torch.where(column(further, x), pushed, point)
        matters = ((point - x) * gradient).abs().masked_fill(point == x, float("inf")).flatten(1)
        least = matters.topk(min(self.prunings, matters.shape[1]), dim=1, largest=False).indices
        for feature in least.split(1, dim=1):
            without = point.flatten(1).scatter(1, feature, x.flatten(1).gather(1, feature)).view_as(x)
            hit = fooled(forward(model, without), label, targeted=threat.targeted)
            closest.record(without, hit, rows)
            point = torch.where(column(hit, x), without, point)

    def _sparsity_gradient(self, delta: Tensor) -> Tensor:
        return 2 * self.sigma * delta / (delta.square() + self.sigma).square()


def _shortfall(logits: Tensor, y: Tensor, *, targeted: bool) -> Tensor:
    """How far the model is from being fooled, ``(n,)``, zero once it is."""
    return margin(logits, y).clamp_min(0) if targeted else carlini_wagner(logits, y)


def _largest_one(gradient: Tensor) -> Tensor:
    """Each sample's gradient divided by its largest entry."""
    size = gradient.abs().flatten(1).amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / column(size, gradient)
