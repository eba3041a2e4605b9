"""Losses that keep a model from being too sure of its training data, or too steep around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .mixing import Mixing, Mixture
from .objectives import BatchLoss, CrossEntropy, Moment
from .penalties import Penalty


@dataclass(frozen=True, slots=True)
class Regularized:
    """Cross-entropy with label smoothing (arXiv 1512.00567) on mixed inputs, plus penalties.

    Args:
        label_smoothing: share of the label's mass that is spread over all classes, in 0..1.
        class_weights: one weight per class.
        mixing: mixup, CutMix, or None.
        penalties: on the input gradient or the Jacobian.

    The accuracy counts the label with the larger share.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    mixing: Mixing | None = None
    penalties: tuple[Penalty, ...] = ()

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        plain = CrossEntropy(self.label_smoothing, self.class_weights)
        same = torch.arange(len(x), device=x.device)
        mixed = self.mixing(x, moment.generator) if self.mixing else Mixture(x, same, 1.0)
        inputs = mixed.x.detach().requires_grad_() if self.penalties else mixed.x
        logits = module(inputs)
        loss = plain.loss(logits, y)
        if mixed.share < 1:
            loss = mixed.share * loss + (1 - mixed.share) * plain.loss(logits, y[mixed.partner])
        total = loss
        for penalty in self.penalties:
            total = total + penalty(inputs, logits, loss, moment.generator)
        larger = y if mixed.share >= 0.5 else y[mixed.partner]
        return BatchLoss(total, (logits.argmax(1) == larger).sum())
