"""Fast minimum-norm attack: gradient steps inside a ball whose radius follows the decision boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Model
from ..errors import UnsupportedError
from ..losses import margin
from ..search import fooled, forward, input_gradient
from ..threat import Norm, Threat
from .minimum_norm import Closest, MinimumNorm, column, cosine, linear_start, project_to_radius

_DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": float("inf"), "l0": float("inf")}


@dataclass(frozen=True, slots=True)
class FMN(MinimumNorm):
    """https://arxiv.org/abs/2102.12827, linf, l2, l1, l0. Success shrinks the ball, failure grows it.

    The first radius is the distance to the nearest boundary of the linearised model (one backward pass for each of
    nine classes); until a sample is fooled its radius is the estimated distance. What was found is pulled in by
    bisection at the end.

    Args:
        steps: gradient steps, >= 1.
        alpha: length of the first step in l2, in units of the bounds' width; annealed to a hundredth.
        gamma: the radius changes by this share a step; annealed to a fiftieth.
    """

    steps: int = 100
    alpha: float = 1.0
    gamma: float = 0.05

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "l0")

    def __post_init__(self) -> None:
        if self.steps < 1 or self.alpha <= 0 or not 0 < self.gamma < 1:
            raise UnsupportedError("FMN needs steps >= 1, alpha > 0 and 0 < gamma < 1")

    def _search(self, model: Model, x: Tensor, y: Tensor, threat: Threat) -> Closest:
        closest = Closest(x, threat)
        sign = -1.0 if threat.targeted else 1.0
        low, high = threat.bounds
        start = linear_start(model, x, y, threat)
        closest.record(start, fooled(forward(model, start), y, targeted=threat.targeted))
        # A dense start helps; a sparse one ties l1 and l0 to its few features.
        point = start if threat.norm in ("linf", "l2") else x
        radius, met = threat.distance(point, x), torch.zeros_like(y, dtype=torch.bool)
        for step in range(self.steps):
            logits, lead, gradient = input_gradient(model, point, lambda z: sign * margin(z, y))
            hit = fooled(logits, y, targeted=threat.targeted)
            closest.record(point, hit)
            met |= hit
            gamma = cosine(self.gamma, self.gamma / 50, step, self.steps)
            missing = -lead / gradient.flatten(1).norm(_DUAL[threat.norm], dim=1).clamp_min(1e-12)
            estimate = threat.distance(point, x) + (1 + gamma) * missing
            radius = self._radius(radius, closest, hit, torch.where(met, 0, estimate), gamma)
            alpha = (high - low) * cosine(self.alpha, self.alpha / 100, step, self.steps)
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
            delta = point - x + column(alpha / length, x) * gradient
            point = (x + project_to_radius(delta, radius, threat.norm)).clamp_(low, high)
        closest.record(point, fooled(forward(model, point), y, targeted=threat.targeted))
        return closest.tighten(model, y)

    def _radius(self, radius: Tensor, closest: Closest, hit: Tensor, estimate: Tensor, gamma: float) -> Tensor:
        shrunk, grown = radius * (1 - gamma), radius * (1 + gamma)
        if closest.threat.norm == "l0":
            shrunk = torch.minimum(shrunk.floor(), radius - 1)
            grown = torch.maximum(grown.ceil(), radius + 1)
        shrunk = torch.minimum(shrunk, closest.distance)
        return torch.where(hit, shrunk, torch.maximum(estimate, grown)).clamp_min(0)
