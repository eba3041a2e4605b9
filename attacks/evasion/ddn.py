"""Decoupled direction and norm: gradient ascent on a sphere whose radius shrinks and grows with success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Model
from ..ball import unit
from ..errors import UnsupportedError
from ..losses import margin
from ..search import fooled, forward, input_gradient
from ..threat import Norm, Threat
from .minimum_norm import Closest, MinimumNorm, column, cosine, linear_start


@dataclass(frozen=True, slots=True)
class DDN(MinimumNorm):
    """https://arxiv.org/abs/1811.09600, l2. Follows the cross-entropy's direction; success shrinks the sphere.

    Begins at the nearest boundary of the linearised model (one backward pass for each of nine classes); until a sample
    is fooled its radius is the estimated distance. Steps are in units of the radius, so that nothing depends on the
    scale of the inputs. What was found is pulled in by bisection at the end.

    Args:
        steps: gradient steps, >= 1.
        gamma: the radius changes by this share a step, annealed to a hundredth.
    """

    steps: int = 100
    gamma: float = 0.05

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.gamma < 1:
            raise UnsupportedError(f"DDN needs steps >= 1 and 0 < gamma < 1, not {self.steps} and {self.gamma}")

    def _search(self, model: Model, x: Tensor, y: Tensor, threat: Threat) -> Closest:
        closest = Closest(x, threat)
        sign = -1.0 if threat.targeted else 1.0
        widest = (threat.bounds[1] - threat.bounds[0]) * x[0].numel() ** 0.5
        delta = linear_start(model, x, y, threat) - x
        radius = threat.distance(delta, torch.zeros_like(x))
        for step in range(self.steps):
            point = (x + delta).clamp_(*threat.bounds)
            logits, _, gradient = input_gradient(model, point, lambda z: sign * log_odds(z, y))
            hit = fooled(logits, y, targeted=threat.targeted)
            closest.record(point, hit)
            gamma = cosine(self.gamma, self.gamma / 100, step, self.steps)
            radius = radius * torch.where(hit, 1 - gamma, 1 + gamma)
            missing = -sign * margin(logits, y) / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
            estimate = threat.distance(point, x) + (1 + gamma) * missing
            radius = torch.where(closest.found, radius, torch.maximum(radius, estimate).clamp_max(widest))
            delta = point - x + column(radius * cosine(1.0, 0.01, step, self.steps), x) * unit(gradient, "l2")
            delta = delta * column(radius / delta.flatten(1).norm(dim=1).clamp_min(1e-12), x)
        point = (x + delta).clamp_(*threat.bounds)
        closest.record(point, fooled(forward(model, point), y, targeted=threat.targeted))
        return closest.tighten(model, y)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Log-odds ``(n,)`` against class ``y``: its gradient points where the cross-entropy's does, never vanishing."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -float("inf")).logsumexp(1) - own
