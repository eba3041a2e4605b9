"""TRADES: accuracy on clean inputs against agreement within the ball (arXiv 1901.08573)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import kl_div

from ..attacks.attack import Access, Model, Randomness, check_norm
from ..attacks.ball import Ball, movable, sparse_step, unit
from ..attacks.errors import UnsupportedError
from ..attacks.models import attacking
from ..attacks.search import forward, input_gradient
from ..attacks.streams import Streams
from ..attacks.threat import Norm, Threat
from .objectives import BatchLoss, CrossEntropy

_NEAR = 1e-3
"""Standard deviation of the start around x: at x itself the divergence has no gradient."""


@dataclass(frozen=True, slots=True)
class TRADES:
    """``cross-entropy(x) + beta * KL(p(x) || p(x_adv))``, both means over the batch.

    Args:
        beta: weight of agreement, >= 0; 1 to 6 in the paper. More of it: more robust, less accurate.
        label_smoothing: of the cross-entropy.
        class_weights: of the cross-entropy.
    """

    beta: float = 6.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise UnsupportedError(f"TRADES beta is {self.beta}: it must be at least 0")

    def __call__(self, model: Model, x: Tensor, x_adv: Tensor, y: Tensor) -> BatchLoss:
        clean, adversarial = model(x).float(), model(x_adv).float()
        natural = CrossEntropy(self.label_smoothing, self.class_weights).loss(clean, y)
        loss = natural + self.beta * divergence(clean, adversarial).mean()
        return BatchLoss(loss, (adversarial.argmax(1) == y).sum())


@dataclass(frozen=True, slots=True)
class DivergenceAscent:
    """The inner attack of TRADES: ascends ``KL(p(x) || p(x_adv))`` from a point close to x; it needs no labels.

    Args:
        steps: gradient steps, >= 1.
        step_size: of every step, in the threat's norm. None: falling linearly from ``10 * eps / steps`` (at most
            ``2 * eps``), as in PGD.
    """

    steps: int = 10
    step_size: float | None = None

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradients"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UnsupportedError(f"TRADES needs at least 1 attack step, not {self.steps}")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Inputs ``(n, ...)`` in the ball on which the prediction differs most from that on ``x``."""
        check_norm(self, threat)
        del y
        x = x.detach()
        ball = Ball.around(x, threat)
        noise = Streams.of(generator, len(x), x.device).normal(x.shape[1:]).to(x)
        with attacking(model):
            clean = forward(model, x).float()
            point = ball.project(x + _NEAR * noise)
            for step in range(self.steps):
                _, _, gradient = input_gradient(model, point, lambda logits: divergence(clean, logits.float()))
                point = self._step(ball, point, gradient, step / self.steps)
        return point

    def _step(self, ball: Ball, point: Tensor, gradient: Tensor, progress: float) -> Tensor:
        """The next point; changes ``point`` in place."""
        norm, eps = ball.threat.norm, ball.threat.eps
        size = self.step_size or eps * min(10 / self.steps, 2) * (1 - progress)
        if norm == "l1":
            direction = sparse_step(ball, point, gradient, progress)
        elif norm == "l2":
            direction = unit(movable(gradient, point, ball.threat.bounds), norm)
        else:
            direction = unit(gradient, norm)
        return ball.project(point.add_(direction, alpha=size))


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """``KL(softmax(clean) || softmax(other))`` of each row of two ``(b, k)`` logits, ``(b,)``."""
    return kl_div(other.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
