"""Expectation over transformation: attacks on models that answer at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..attack import Access, Attack, Model, Randomness, Traced
from ..errors import UnsupportedError
from ..models import attacking
from ..threat import Threat
from .pgd import PGD


class Averaged:
    """A randomised model whose answers are averaged over ``draws`` passes.

    The native attacks read ``draws`` and average logits, loss and gradient over that many passes, one after the
    other, so that memory stays that of one pass.
    """

    def __init__(self, model: Model, draws: int) -> None:
        self.model = model
        self.draws = draws

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)`` of a single pass."""
        return self.model(x)


@dataclass(frozen=True, slots=True)
class EOT:
    """https://arxiv.org/abs/1707.07397. Another attack, on the expectation of a randomised model.

    Each gradient is averaged over ``draws`` forward and backward passes, each prediction over ``draws`` forward
    passes. A randomised model takes its randomness from wherever it likes, so results are repeatable only as far as
    the model is; and the engine's verification is a single draw.

    Args:
        attack: a native white-box attack, such as ``PGD`` or ``APGD``.
        draws: passes to average, >= 1; AutoAttack's ``rand`` version takes 20.
    """

    attack: Attack = field(default_factory=PGD)
    draws: int = 20

    access: ClassVar[Access] = "gradients"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UnsupportedError(f"EOT needs draws >= 1, not {self.draws}")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        with attacking(model):
            return self.attack(Averaged(model, self.draws), x, y, threat, generator=generator)

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: forward passes of each sample until it fell, else in all.

        Raises:
            UnsupportedError: when the attack inside does not count.
        """
        if not isinstance(self.attack, Traced):
            raise UnsupportedError(f"{type(self.attack).__name__} does not say what it spends on each sample")
        with attacking(model):
            x_adv, spent = self.attack.trace(Averaged(model, self.draws), x, y, threat, generator=generator)
        return x_adv, spent * self.draws
