"""Notices when single-step adversarial training overfits to its own attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attacks.attack import Attack
from ..attacks.evasion.pgd import PGD
from ..attacks.threat import Threat
from .adversarial_training import warmed_up


@dataclass(frozen=True, slots=True, eq=False)
class OverfittingGuard:
    """Catastrophic overfitting (arXiv 2001.03994, 2007.02617): single-step attacks no longer find what longer ones do.

    The sign is a gap between accuracy under one step and under PGD on the same samples: a few points in a healthy
    training, most of the accuracy after the collapse, which takes less than an epoch.

    Args:
        x, y: some training inputs ``(n, ...)`` and labels ``(n,)``; a hundred do, for the gap is large.
        threat: what is trained against.
        single: the attack trained with.
        warmup: as in the training.
        gap: largest gap in a healthy training.
        steps: of PGD.
    """

    x: Tensor
    y: Tensor
    threat: Threat
    single: Attack
    warmup: float = 0.0
    gap: float = 0.2
    steps: int = 5

    def __call__(self, module: nn.Module, progress: float) -> str:
        threat = warmed_up(self.threat, self.warmup, progress)
        single = self._accuracy(module, self.single, threat)
        strong = self._accuracy(module, PGD(steps=self.steps, early_stop=False), threat)
        if single - strong <= self.gap:
            return ""
        return (
            f"catastrophic overfitting: on {len(self.x)} training inputs accuracy is {single:.0%} under the one step "
            f"trained with, but {strong:.0%} under {self.steps} steps of PGD; the weights from before were kept. "
            "Use method pgd or trades, a smaller eps, or a longer eps warm-up"
        )

    def _accuracy(self, module: nn.Module, attack: Attack, threat: Threat) -> float:
        device = next(module.parameters()).device
        x, y = self.x.to(device), self.y.to(device)
        x_adv = attack(module, x, y, threat, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float((module(x_adv).argmax(1) == y).float().mean())
