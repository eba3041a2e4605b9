"""What attacks increase: one number per sample, larger meaning closer to the attack's goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .errors import UnsupportedError

LossName = Literal["ce", "margin", "dlr"]
Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits (n, k), y (n,)) -> (n,)``, large where the model errs on class y."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy ``(n,)`` of class ``y``."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the logit of ``y``, ``(n,)``: positive exactly where the model errs. k >= 2."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return largest_other(logits, y) - own


def carlini_wagner(logits: Tensor, y: Tensor, confidence: float = 0.0) -> Tensor:
    """The loss f6 of Carlini & Wagner (arXiv 1608.04644), ``(n,)``, to be minimised.

    ``max(z_y - max_other z + confidence, 0)``: zero once the model errs by ``confidence``.
    """
    return (confidence - margin(logits, y)).clamp_min(0)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference-of-logits ratio ``(n,)`` (Croce & Hein, arXiv 2003.01690): the margin, free of scale and shift.

    Raises:
        UnsupportedError: for fewer than 3 classes.
    """
    _require_classes(logits, 3, "dlr")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference-of-logits ratio ``(n,)`` (arXiv 2003.01690): large where ``target`` exceeds ``y``.

    Raises:
        UnsupportedError: for fewer than 4 classes.
    """
    _require_classes(logits, 4, "targeted dlr")
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Logit of ``target`` minus logit of ``y``, ``(n,)``. k >= 2."""
    pair = logits.gather(1, torch.stack([target, y], dim=1))
    return pair[:, 0] - pair[:, 1]


def largest_other(logits: Tensor, y: Tensor) -> Tensor:
    """Largest logit of a class other than ``y``, ``(n,)``."""
    return logits.scatter(1, y[:, None], -float("inf")).amax(1)


def strongest_other(logits: Tensor, y: Tensor) -> Tensor:
    """The class other than ``y`` with the largest logit, int64 ``(n,)``."""
    return logits.scatter(1, y[:, None], -float("inf")).argmax(1)


def objective(name: LossName, *, targeted: bool) -> Loss:
    """The loss to increase: that of class ``y``, or, targeted, one that is large where the model chooses ``y``.

    Raises:
        UnsupportedError: for an unknown name.
    """
    losses: dict[str, tuple[Loss, Loss]] = {
        "ce": (cross_entropy, lambda logits, target: -cross_entropy(logits, target)),
        "margin": (margin, lambda logits, target: -margin(logits, target)),
        "dlr": (dlr, lambda logits, target: targeted_dlr(logits, strongest_other(logits, target), target)),
    }
    if name not in losses:
        raise UnsupportedError(f"loss is {name!r}: choose one of {', '.join(losses)}")
    return losses[name][targeted]


def _require_classes(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        raise UnsupportedError(
            f"the {name} loss needs at least {least} classes, the model has {logits.shape[1]}: use loss 'margin'"
        )
