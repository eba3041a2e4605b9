"""One small perturbation for all inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Model, check_norm
from ..ball import unit
from ..engine import check_inputs
from ..errors import UnsupportedError
from ..models import attacking
from ..threat import Norm, Threat
from .training import ascent, batches, seeded


@dataclass(frozen=True, slots=True)
class UniversalPerturbation:
    """https://arxiv.org/abs/1811.11304. Stochastic gradient ascent on the clipped mean loss over a set of samples.

    Args:
        steps: gradient steps, >= 1.
        batch_size: samples per step.
        step_size: first step as a share of eps; later steps fall linearly to nothing.
        clip: most loss (nats) that a sample can bring in; without it few hopeless samples would steer.
    """

    steps: int = 200
    batch_size: int = 64
    step_size: float = 0.25
    clip: float = 9.0

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.step_size <= 0 or self.clip <= 0:
            raise UnsupportedError("a universal perturbation needs steps, batch_size, step_size and clip above 0")

    def fit(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The perturbation, in the shape of one sample and of norm eps or less.

        Args:
            x: ``(n, ...)`` within the bounds, where the model is.
            y: int64 ``(n,)``, labels; for a targeted threat the classes to reach.
            threat: norm (linf or l2), radius, bounds.
            generator: on the CPU; None: seed 0.

        Raises:
            UnsupportedError: for another norm, for unusable inputs, or when the model gives no gradient.
        """
        check_norm(self, threat)
        check_inputs(x, y, threat)
        delta = torch.zeros_like(x[:1])
        with attacking(model):
            for step, rows in enumerate(batches(len(x), self.batch_size, self.steps, seeded(generator))):
                leaf = delta.detach().requires_grad_()
                rows = rows.to(x.device)
                with torch.enable_grad():
                    moved = perturbed(x[rows], leaf, threat.bounds)
                    gradient = ascent(model, moved, y[rows], leaf, self.clip, targeted=threat.targeted)
                length = threat.eps * self.step_size * (1 - step / self.steps)
                delta = _within(delta + length * unit(gradient, threat.norm), threat)
        return delta[0]


def perturbed(x: Tensor, delta: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Inputs ``(n, ...)`` plus one perturbation, cut to the bounds."""
    return (x + delta).clamp(*bounds)


def _within(delta: Tensor, threat: Threat) -> Tensor:
    if threat.norm == "linf":
        return delta.clamp(-threat.eps, threat.eps)
    length = delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.dim() - 1))
    return delta * (threat.eps / length.clamp_min(1e-12)).clamp_max(1)
