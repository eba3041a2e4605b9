"""MART: adversarial training that weighs what the model gets wrong (Wang et al., ICLR 2020).

https://openreview.net/forum?id=rklOg6EFwS
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from ..attacks.attack import Model
from ..attacks.errors import UnsupportedError
from ..attacks.losses import largest_other
from .objectives import BatchLoss
from .trades import divergence

_TINY = 1e-4
"""Keeps the margin term finite where a wrong class has all the probability (as in the authors' code)."""


@dataclass(frozen=True, slots=True)
class MART:
    """Boosted cross-entropy on ``x_adv``, plus ``beta`` times ``KL(p(x) || p(x_adv)) * (1 - p_y(x))``, means over the
    batch. The boosted cross-entropy is ``-log p_y(x_adv) - log(1 - max p_k(x_adv))`` over the wrong classes k.

    Args:
        beta: weight of the second term, >= 0; 5 in the paper (there: lambda).
        class_weights: one weight per class for each sample's whole loss.
    """

    beta: float = 5.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise UnsupportedError(f"MART beta is {self.beta}: it must be at least 0")

    def __call__(self, model: Model, x: Tensor, x_adv: Tensor, y: Tensor) -> BatchLoss:
        adversarial, clean = model(x_adv).float(), model(x).float()
        wrong = largest_other(adversarial.softmax(1), y)
        boosted = cross_entropy(adversarial, y, reduction="none") - (1 + _TINY - wrong).log()
        doubt = 1 - clean.softmax(1).gather(1, y[:, None]).squeeze(1)
        losses = boosted + self.beta * divergence(clean, adversarial) * doubt
        correct = (adversarial.argmax(1) == y).sum()
        if self.class_weights is None:
            return BatchLoss(losses.mean(), correct)
        weight = losses.new_tensor(self.class_weights)[y]
        return BatchLoss((weight * losses).sum() / weight.sum(), correct)
