"""Knowledge distillation: learn a teacher's answers with all their shades (arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attacks.errors import UnsupportedError
from ..attacks.models import attacking
from .objectives import BatchLoss, CrossEntropy, Moment
from .trades import divergence


@dataclass(frozen=True, slots=True)
class Distillation:
    """``weight * T^2 * KL(teacher at T || student at T) + (1 - weight) * cross-entropy``, means over the batch.

    ``T^2`` keeps the first term's gradients of the same size whatever the temperature T.

    Args:
        teacher: gives logits ``(b, k)`` on the student's inputs; asked in eval mode, never changed.
        temperature: > 0, by which both logits are divided; 2 to 5 is usual.
        weight: of the teacher against the labels, in 0..1.
        label_smoothing, class_weights: of the cross-entropy.
    """

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 0.9
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UnsupportedError(f"the temperature is {self.temperature}: it must be above 0")
        if not 0 <= self.weight <= 1:
            raise UnsupportedError(f"the teacher's weight is {self.weight}: it lies in 0..1")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        del moment
        with torch.no_grad(), attacking(self.teacher):
            taught = self.teacher(x).float()
        logits = module(x).float()
        if taught.shape != logits.shape:
            raise UnsupportedError(f"teacher and student answer in shapes {taught.shape[1:]} and {logits.shape[1:]}")
        soft = divergence(taught / self.temperature, logits / self.temperature).mean() * self.temperature**2
        hard = CrossEntropy(self.label_smoothing, self.class_weights).loss(logits, y)
        return BatchLoss(self.weight * soft + (1 - self.weight) * hard, (logits.argmax(1) == y).sum())
