"""Runs an attack over ascending radii: what breaks in a small ball is not attacked again in a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attacks.attack import Attack, AttackOutcome, Traced, Unit
from ...attacks.engine import evaluate
from ...attacks.threat import Norm, Threat
from ..target import Target
from .base import Context


@dataclass(frozen=True, slots=True)
class Subject:
    """What is attacked.

    Attributes:
        x: encoded inputs ``(n, ...)``.
        goal: labels ``(n,)`` to leave, or classes to reach when ``targeted``.
        ids: int64 ``(n,)``, to which random draws belong.
    """

    target: Target
    x: Tensor
    goal: Tensor
    ids: Tensor
    norm: Norm
    targeted: bool

    def __len__(self) -> int:
        return len(self.x)

    def threat(self, eps: float) -> Threat:
        return Threat(self.norm, eps, self.targeted, self.target.bounds)


@dataclass(slots=True)
class Search:
    """The best adversarial inputs known so far, and what finding them took. Misclassified inputs are not attacked.

    Attributes:
        x_adv: ``(n, ...)``, the clean input where nothing was found.
        logits: ``(n, k)`` on ``x_adv``.
        distance: float32 ``(n,)``, size of the perturbation; infinity where nothing was found, 0 if misclassified.
        radius: float64 ``(n,)``, smallest radius at which the sample is known to break. For an attack at a fixed
            radius the radius of the run; for a smallest-perturbation attack the distance.
    """

    subject: Subject
    x_adv: Tensor
    logits: Tensor
    distance: Tensor
    radius: Tensor
    spent: Tensor
    unit: Unit | None = None
    minimal: bool = False
    sweeps: int = 0
    forwards: int = 0
    backwards: int = 0
    verification_forwards: int = 0

    @classmethod
    def begin(cls, subject: Subject, clean_logits: Tensor, correct: Tensor) -> Search:
        distance = torch.where(correct, float("inf"), 0.0)
        spent = torch.zeros(len(subject), dtype=torch.int64)
        return cls(subject, subject.x.clone(), clean_logits.clone(), distance, distance.double(), spent)

    def sweep(
        self, attack: Attack, radii: Sequence[float], eps: float, context: Context, batch_size: int | None
    ) -> None:
        """Attacks at each of ``radii`` (ascending, above 0); one run serves all for smallest-perturbation attacks.

        Args:
            eps: the one of ``radii`` for which ``spent`` is counted.
        """
        minimal = getattr(attack, "minimal", False)
        runs = (eps,) if minimal else radii
        self.minimal |= minimal
        self.sweeps += 1
        self.unit = attack.unit if isinstance(attack, Traced) and self.sweeps == 1 else None
        context.progress.start(type(attack).__name__, len(runs) * len(self.subject))
        for radius in runs:
            self.attack(attack, radius, context, batch_size, share=len(self.subject), counted=radius <= eps)

    def attack(
        self,
        attack: Attack,
        eps: float,
        context: Context,
        batch_size: int | None,
        share: float = 0.0,
        *,
        counted: bool = False,
    ) -> Tensor:
        """Attacks the samples that still stand at ``eps``; returns the positions of those that fell.

        Args:
            share: how much progress the run is worth.
            counted: whether what the run takes adds to ``spent``.
        """
        left = (self.radius > eps).nonzero().squeeze(1)
        if len(left) == 0:
            context.progress.advance(share)
            return left
        subject, reported = self.subject, 0.0

        def report(done: int, total: int) -> None:
            nonlocal reported
            context.progress.advance(share * done / total - reported)
            reported = share * done / total

        outcome = evaluate(
            attack,
            subject.target.module,
            subject.x[left],
            subject.goal[left],
            subject.threat(eps),
            seed=context.seed,
            ids=subject.ids[left],
            batch_size=batch_size,
            device=subject.target.device,
            progress=report,
        )
        context.progress.advance(share - reported)
        if counted:
            self.spent[left] += outcome.spent
        return self._keep(left, outcome, eps, minimal=getattr(attack, "minimal", False))

    def _keep(self, left: Tensor, outcome: AttackOutcome, eps: float, *, minimal: bool) -> Tensor:
        distance, never = outcome.distance.double(), torch.tensor(float("inf"), dtype=torch.float64)
        if minimal:
            # Rounding may leave a success a hair outside of its ball; the engine has allowed for it.
            radius = torch.where(outcome.success, distance.clamp_max(eps), distance)
        else:
            radius = torch.where(outcome.success, torch.full_like(distance, eps), never)
        better = (radius < self.radius[left]).nonzero().squeeze(1)
        rows = left[better]
        self.x_adv[rows], self.logits[rows] = outcome.x_adv[better], outcome.adv_logits[better]
        self.distance[rows], self.radius[rows] = outcome.distance[better], radius[better]
        self.forwards += outcome.forwards
        self.backwards += outcome.backwards
        self.verification_forwards += outcome.verification_forwards
        return left[outcome.success]


@torch.no_grad()
def module_logits(target: Target, x: Tensor, batch_size: int | None) -> Tensor:
    """Float32 logits ``(n, k)`` of encoded inputs, on the CPU."""
    parts = [target.module(part.to(target.device)).float().cpu() for part in x.split(batch_size or 256)]
    return torch.cat(parts)
