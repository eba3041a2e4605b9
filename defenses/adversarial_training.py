"""Adversarial training: learn on the inputs an attacker would send."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from ..attacks.attack import Attack, Model
from ..attacks.errors import UnsupportedError
from ..attacks.evasion.pgd import PGD
from ..attacks.threat import Threat
from .awp import WeightPerturbation
from .objectives import BatchLoss, CrossEntropy, Moment
from .precision import without_float16


class RobustLoss(Protocol):
    """What is minimised on clean inputs ``x (b, ...)`` and adversarial ones ``x_adv``; counts correct answers on the
    latter."""

    def __call__(self, model: Model, x: Tensor, x_adv: Tensor, y: Tensor) -> BatchLoss: ...


@dataclass(frozen=True, slots=True)
class OnAdversarial:
    """Cross-entropy on the adversarial inputs alone (PGD-AT, arXiv 1706.06083)."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, model: Model, x: Tensor, x_adv: Tensor, y: Tensor) -> BatchLoss:
        del x
        logits = model(x_adv)
        return BatchLoss(
            CrossEntropy(self.label_smoothing, self.class_weights).loss(logits, y), (logits.argmax(1) == y).sum()
        )


@dataclass(frozen=True, slots=True)
class AdversarialLoss:
    """A loss on adversarial inputs made afresh for every batch.

    The attack sees the module in eval mode, so that it moves no BatchNorm statistics and no dropout hides the
    gradient; the training step itself runs in train mode.

    Args:
        threat: norm (linf, l2 or l1), eps and bounds to train against; untargeted.
        attack: what makes the inputs; see :func:`training_pgd`, :func:`fast` and
            :class:`~auditorch.defenses.trades.DivergenceAscent`.
        warmup: share of the training over which eps grows from 0 to its full size, in 0..1.
        loss: what is minimised: :class:`OnAdversarial`, :class:`~auditorch.defenses.trades.TRADES` or
            :class:`~auditorch.defenses.mart.MART`.
        awp: adversarial weight perturbation on top, or None.

    Raises:
        UnsupportedError: for a targeted threat, l0, or a warm-up outside 0..1.
    """

    threat: Threat
    attack: Attack
    warmup: float = 0.0
    loss: RobustLoss = OnAdversarial()
    awp: WeightPerturbation | None = None

    def __post_init__(self) -> None:
        check_threat(self.threat)
        check_warmup(self.warmup)

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        threat = warmed_up(self.threat, self.warmup, moment.progress)
        with without_float16(x):
            x_adv = self.attack(module, x, y, threat, generator=moment.generator)
        model: Model = module
        if self.awp is not None and moment.progress >= self.awp.start:
            model = self.awp.perturbed(module, lambda shifted: self.loss(shifted, x, x_adv, y).loss)
        return self.loss(model, x, x_adv, y)


def check_threat(threat: Threat) -> None:
    """Refuses threats that cannot be trained against.

    Raises:
        UnsupportedError: with the reason.
    """
    if threat.targeted:
        raise UnsupportedError("adversarial training defends against untargeted attacks: threat.targeted is set")
    if threat.norm == "l0":
        raise UnsupportedError(
            "adversarial training against l0 is not offered: which features to change is a combinatorial choice that "
            "no few gradient steps approximate. Train against l1, its convex neighbour, and evaluate with l0"
        )


def check_warmup(warmup: float) -> None:
    if not 0 <= warmup <= 1:
        raise UnsupportedError(f"warmup is {warmup}: it is a share of the training, 0 to 1")


def warmed_up(threat: Threat, warmup: float, progress: float) -> Threat:
    """The threat at ``progress`` (0..1) of a training whose radius grows linearly over the first ``warmup``."""
    share = min(1.0, progress / warmup) if warmup else 1.0
    return replace(threat, eps=threat.eps * share)


def training_pgd(steps: int = 7, step_size: float | None = None) -> PGD:
    """PGD as adversarial training uses it: random start, every sample for all steps."""
    return PGD(steps=steps, step_size=step_size, early_stop=False)


def fast(threat: Threat) -> PGD:
    """One signed-gradient step of 1.25 eps from a random start: Fast-AT (arXiv 2001.03994).

    It can overfit catastrophically at large eps: robust accuracy against PGD then falls to 0 within an epoch.
    :class:`~auditorch.defenses.catastrophic.OverfittingGuard` notices.
    """
    return PGD(steps=1, step_size=1.25 * threat.eps, early_stop=False)
