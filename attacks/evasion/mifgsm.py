"""Momentum iterative fast gradient method, whose points transfer better between models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..ball import Ball, movable, unit
from ..errors import UnsupportedError
from ..losses import LossName, objective
from ..models import attacking
from ..projections import steepest_corner
from ..search import ActiveSet, attackable, fooled, forward, input_gradient
from ..threat import Norm, Threat


@dataclass(frozen=True, slots=True)
class MIFGSM:
    """https://arxiv.org/abs/1710.06081. Steps of ``eps / steps`` along an accumulated gradient, from ``x``.

    Each gradient enters the sum divided by its l1 norm. For l1, step t spends ``eps * t / steps`` on the features
    with the largest accumulated gradient.

    Args:
        steps: gradient steps, >= 1.
        decay: weight of the accumulated gradient, mu in the paper; 0 gives the basic iterative method.
        loss: ``ce``, ``margin`` or ``dlr``.

    Raises:
        UnsupportedError: for l0, when the model gives no gradients, or has too few classes for the loss.
    """

    steps: int = 10
    decay: float = 1.0
    loss: LossName = "ce"

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradients"
    unit: ClassVar[Unit] = "steps"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UnsupportedError(f"MIFGSM needs steps >= 1, not {self.steps}")

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        generator: Randomness = None,  # noqa: ARG002  the attack is deterministic
    ) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat)[0]

    def trace(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        generator: Randomness = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: points examined of each sample until it fell, else in all."""
        check_norm(self, threat)
        loss = objective(self.loss, targeted=threat.targeted)
        with attacking(model):
            search = ActiveSet(x, attackable(model, x, y, targeted=threat.targeted))
            if len(search) == 0:
                return search.x_adv, search.spent
            ball, label = Ball.around(x[search.index], threat), y[search.index]
            point = ball.x.clone()
            momentum = torch.zeros_like(point)
            for step in range(self.steps):
                logits, _, gradient = input_gradient(model, point, lambda z, label=label: loss(z, label))
                momentum = self.decay * momentum + _l1_normalised(gradient)
                search.record(point, fooled(logits, label, targeted=threat.targeted))
                keep = search.compact()
                if keep is not None:
                    if len(keep) == 0:
                        return search.x_adv, search.spent
                    point, momentum, ball, label = point[keep], momentum[keep], ball.select(keep), label[keep]
                point = _step(ball, point, momentum, (step + 1) / self.steps, threat.eps / self.steps)
            logits = forward(model, point)
            search.record(point, fooled(logits, label, targeted=threat.targeted))
            search.attempt(point, loss(logits, label))
        return search.x_adv, search.spent


def _l1_normalised(gradient: Tensor) -> Tensor:
    size = gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / size.view(-1, *[1] * (gradient.dim() - 1))


def _step(ball: Ball, point: Tensor, momentum: Tensor, share: float, step: float) -> Tensor:
    """The next point: ``step`` along the momentum, or for l1 the ``share`` of eps where the momentum is largest."""
    threat = ball.threat
    if threat.norm == "l1":
        return steepest_corner(ball.x, momentum, "l1", threat.eps * share, threat.bounds)
    free = movable(momentum, point, threat.bounds) if threat.norm == "l2" else momentum
    return ball.project(torch.add(point, unit(free, threat.norm), alpha=step))
