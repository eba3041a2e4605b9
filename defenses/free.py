"""Free adversarial training: one backward pass serves the weights and the perturbation (arXiv 1904.12843)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..attacks.ball import Ball, movable, sparse_step, unit
from ..attacks.errors import UnsupportedError
from ..attacks.threat import Threat
from .adversarial_training import check_threat, check_warmup, warmed_up
from .objectives import BatchLoss, CrossEntropy, Moment


@dataclass(slots=True)
class FreeLoss:
    """Cross-entropy on perturbed inputs; each batch is passed ``replays`` times, and after each pass the perturbation
    takes a step of eps along the gradient that the training step computed anyway.

    The perturbation goes over from batch to batch, so the object serves one training.

    Args:
        threat: norm (linf, l2 or l1), eps and bounds.
        replays: passes on each batch, >= 1 (m in the paper; 4 to 8 there, with as many times fewer epochs).
        warmup: share of the training over which eps grows from 0.
        label_smoothing, class_weights: of the cross-entropy.
    """

    threat: Threat
    replays: int = 4
    warmup: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    _delta: Tensor | None = field(default=None, repr=False)
    _pass: tuple[Tensor, Tensor, Threat] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_threat(self.threat)
        check_warmup(self.warmup)
        if self.replays < 1:
            raise UnsupportedError(f"free adversarial training needs at least 1 replay, not {self.replays}")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        self._step()
        threat = warmed_up(self.threat, self.warmup, moment.progress)
        if self._delta is None or self._delta.shape[1:] != x.shape[1:] or len(self._delta) < len(x):
            self._delta = torch.zeros_like(x)
        point = threat.project(x + self._delta[: len(x)], x).detach().requires_grad_()
        self._pass = (x, point, threat)
        logits = module(point)
        loss = CrossEntropy(self.label_smoothing, self.class_weights).loss(logits, y)
        return BatchLoss(loss, (logits.argmax(1) == y).sum())

    def state(self) -> dict[str, Tensor]:
        """The perturbation, after the step that the last pass asks for."""
        self._step()
        return {} if self._delta is None else {"delta": self._delta}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from what :meth:`state` gave."""
        self._delta, self._pass = state.get("delta"), None

    def _step(self) -> None:
        if self._pass is None or self._delta is None:
            return
        (x, point, threat), self._pass = self._pass, None
        if point.grad is not None:
            with torch.no_grad():
                self._delta[: len(x)] = _moved(x, point.detach(), point.grad.nan_to_num(0.0, 0.0, 0.0), threat) - x


def _moved(x: Tensor, point: Tensor, gradient: Tensor, threat: Threat) -> Tensor:
    ball = Ball.around(x, threat)
    if threat.norm == "l1":
        direction = sparse_step(ball, point, gradient, 0.0)
    elif threat.norm == "l2":
        direction = unit(movable(gradient, point, threat.bounds), "l2")
    else:
        direction = unit(gradient, "linf")
    return ball.project(point + threat.eps * direction)
