"""Label smoothing and mixup: losses that keep a model from being too sure of its training data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks.errors import UnsupportedError
from .objectives import BatchLoss, CrossEntropy, Moment


@dataclass(frozen=True, slots=True)
class Mixup:
    """Trains on ``share * a + (1 - share) * b`` for random pairs of the batch (arXiv 1710.09412), both labels weighed
    alike; label smoothing (arXiv 1512.00567) comes on top.

    Args:
        alpha: share is drawn from Beta(alpha, alpha), once a batch; 0 gives no mixing, the paper uses 0.1 to 0.4.
        label_smoothing: share of the label's mass that is spread over all classes, in 0..1.
        class_weights: one weight per class.

    The accuracy counts the label with the larger share.
    """

    alpha: float = 0.2
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise UnsupportedError(f"mixup alpha is {self.alpha}: it must be at least 0")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        plain = CrossEntropy(self.label_smoothing, self.class_weights)
        if self.alpha == 0:
            return plain(module, x, y, moment)
        seed = int(torch.randint(2**63 - 1, (), generator=moment.generator))
        share = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        partner = torch.randperm(len(x), generator=moment.generator).to(x.device)
        logits = module(share * x + (1 - share) * x[partner])
        loss = share * plain.loss(logits, y) + (1 - share) * plain.loss(logits, y[partner])
        larger = y if share >= 0.5 else y[partner]
        return BatchLoss(loss, (logits.argmax(1) == larger).sum())
