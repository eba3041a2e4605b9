"""Projected gradient descent, the workhorse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..ball import Ball, movable, sparse_step, unit
from ..errors import UnsupportedError
from ..losses import Loss, LossName, objective
from ..models import attacking
from ..search import ActiveSet, attackable, fooled, forward, input_gradient
from ..streams import Streams
from ..threat import Norm, Threat


@dataclass(frozen=True, slots=True)
class PGD:
    """https://arxiv.org/abs/1706.06083. Steepest ascent on the loss, projected onto ball and bounds after each step.

    linf steps along the signs of the gradient, l2 along the gradient of the features that can still move, l1 along the
    signs of its largest entries (arXiv 1904.13000), a fifth of the features at first and fewer and fewer after.
    A sample drops out as soon as it is fooled.

    Args:
        steps: gradient steps, >= 1.
        step_size: length of every step in the threat's norm, in input units. None: ``10 * eps / steps`` (at most
            ``2 * eps``) falling linearly towards 0, for l1 ``eps`` falling to a tenth. Against a trained CNN that was
            stronger than the customary constant ``2.5 * eps / steps``, and fooled most samples sooner.
        restarts: independent runs on the samples not yet fooled; needs ``random_start``.
        random_start: begin at a random point of the ball instead of at ``x``.
        loss: ``ce``, ``margin`` or ``dlr``.
        early_stop: drop fooled samples. When false, every sample is attacked for all steps, misclassified ones too,
            and the last point is returned unexamined: what adversarial training wants.

    Raises:
        UnsupportedError: for l0, when the model gives no gradients, or has too few classes for the loss.
    """

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "ce"
    early_stop: bool = True

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradients"
    unit: ClassVar[Unit] = "steps"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UnsupportedError(f"PGD needs steps >= 1 and restarts >= 1, not {self.steps} and {self.restarts}")
        if self.restarts > 1 and not (self.random_start and self.early_stop):
            raise UnsupportedError(
                "restarts of PGD need random_start and early_stop: without them they repeat the first"
            )

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: points examined of each sample until it fell, else in all."""
        check_norm(self, threat)
        streams = Streams.of(generator, len(x), x.device)
        loss = objective(self.loss, targeted=threat.targeted)
        with attacking(model):
            if not self.early_stop:
                return self._ascend(model, x, y, threat, streams, loss), torch.full_like(y, self.steps)
            search = ActiveSet(x, attackable(model, x, y, targeted=threat.targeted))
            for restart in range(self.restarts):
                if search.restart():
                    self._run(model, search, x, y, threat, streams.fork(restart), loss)
        return search.x_adv, search.spent

    def _run(
        self, model: Model, search: ActiveSet, x: Tensor, y: Tensor, threat: Threat, streams: Streams, loss: Loss
    ) -> None:
        """One run on the active samples; fooling points and best attempts go into ``search``."""
        rows = search.index
        ball, label = Ball.around(x[rows], threat), y[rows]
        point = self._start(ball, streams.select(rows))
        for step in range(self.steps):
            logits, _, gradient = input_gradient(model, point, lambda z, label=label: loss(z, label))
            search.record(point, fooled(logits, label, targeted=threat.targeted))
            keep = search.compact()
            if keep is not None:
                if len(keep) == 0:
                    return
                point, gradient, ball, label = point[keep], gradient[keep], ball.select(keep), label[keep]
            point = self._step(ball, point, gradient, step)
        logits = forward(model, point)
        search.record(point, fooled(logits, label, targeted=threat.targeted))
        search.attempt(point, loss(logits, label))

    def _ascend(self, model: Model, x: Tensor, y: Tensor, threat: Threat, streams: Streams, loss: Loss) -> Tensor:
        ball = Ball.around(x.detach(), threat)
        point = self._start(ball, streams)
        for step in range(self.steps if len(x) else 0):
            _, _, gradient = input_gradient(model, point, lambda z: loss(z, y))
            point = self._step(ball, point, gradient, step)
        return point

    def _start(self, ball: Ball, streams: Streams) -> Tensor:
        return ball.threat.random_start(ball.x, streams) if self.random_start else ball.x.clone()

    def _step(self, ball: Ball, point: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The next point; changes ``point`` in place."""
        norm, size = ball.threat.norm, self._size(ball.threat, step)
        if norm == "l1":
            direction = sparse_step(ball, point, gradient, step / max(self.steps - 1, 1))
        elif norm == "l2":
            direction = unit(movable(gradient, point, ball.threat.bounds), norm)
        else:
            direction = unit(gradient, norm)
        return ball.project(point.add_(direction, alpha=size))

    def _size(self, threat: Threat, step: int) -> float:
        if self.step_size is not None:
            return self.step_size
        if threat.norm == "l1":
            return threat.eps * (1 - 0.9 * step / max(self.steps - 1, 1))
        return threat.eps * min(10 / self.steps, 2) * (1 - step / self.steps)
