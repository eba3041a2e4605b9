"""Adversarial training: learn on the inputs an attacker would send."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..attacks.attack import Attack
from ..attacks.errors import UnsupportedError
from ..attacks.evasion.pgd import PGD
from ..attacks.threat import Threat
from .objectives import BatchLoss, CrossEntropy, Moment


@dataclass(frozen=True, slots=True)
class AdversarialLoss:
    """Cross-entropy on adversarial inputs made afresh for every batch (PGD-AT, arXiv 1706.06083).

    The attack sees the module in eval mode, so that it moves no BatchNorm statistics and no dropout hides the
    gradient; the training step itself runs in train mode on the adversarial inputs.

    Args:
        threat: norm (linf, l2 or l1), eps and bounds to train against; untargeted.
        attack: what makes the inputs; see :func:`training_pgd` and :func:`fast`.
        warmup: share of the training over which eps grows from 0 to its full size, in 0..1.
        class_weights: one weight per class in the loss.

    Raises:
        UnsupportedError: for a targeted threat, or a warm-up outside 0..1.
    """

    threat: Threat
    attack: Attack
    warmup: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.threat.targeted:
            raise UnsupportedError("adversarial training defends against untargeted attacks: threat.targeted is set")
        if not 0 <= self.warmup <= 1:
            raise UnsupportedError(f"warmup is {self.warmup}: it is a share of the training, 0 to 1")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        share = min(1.0, moment.progress / self.warmup) if self.warmup else 1.0
        threat = replace(self.threat, eps=self.threat.eps * share)
        x_adv = self.attack(module, x, y, threat, generator=moment.generator)
        return CrossEntropy(class_weights=self.class_weights)(module, x_adv, y, moment)


def training_pgd(steps: int = 7) -> PGD:
    """PGD as adversarial training uses it: random start, every sample for all steps, step size 2.5 eps / steps."""
    return PGD(steps=steps, early_stop=False)


def fast(threat: Threat) -> PGD:
    """One signed-gradient step of 1.25 eps from a random start: Fast-AT (arXiv 2001.03994).

    It can overfit catastrophically at large eps: robust accuracy against PGD then falls to 0 within an epoch.
    """
    return PGD(steps=1, step_size=1.25 * threat.eps, early_stop=False)
