"""DeepFool and SuperDeepFool: steps to the nearest boundary of the linearised model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Model, check_norm
from ..errors import UnsupportedError
from ..search import fooled, forward
from ..threat import Norm, Threat
from .hyperplane import step_to_hyperplane
from .minimum_norm import Closest, MinimumNorm, column, lead_gradients, likeliest_others, step_to_nearest


@dataclass(frozen=True, slots=True)
class DeepFool(MinimumNorm):
    """https://arxiv.org/abs/1511.04599, l2 and linf. Untargeted; fooled samples drop out.

    Each step goes towards the nearest boundary of the linearised model inside the bounds. Where the paper goes all the
    way and stops at the first fooling point, this goes a share of it, which bends around curved boundaries, and pulls
    the fooling point in by bisection.

    Args:
        steps: most linearisations a sample, >= 1.
        share: how much of the way a step goes, 1 for the paper's.
        overshoot: what a step adds to that, as a share of the first gap.
        candidates: how many classes besides the label to consider, likeliest on ``x`` first; a backward pass each.
    """

    steps: int = 50
    share: float = 0.6
    overshoot: float = 0.02
    candidates: int = 9

    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    def __post_init__(self) -> None:
        if self.steps < 1 or self.candidates < 1 or not 0 < self.share <= 1 or self.overshoot <= 0:
            raise UnsupportedError("DeepFool needs steps >= 1, candidates >= 1, 0 < share <= 1 and overshoot > 0")

    def _check(self, threat: Threat) -> None:
        refuse_targets(self, threat)

    def _search(self, model: Model, x: Tensor, y: Tensor, threat: Threat) -> Closest:
        closest = Closest(x, threat)
        classes = likeliest_others(forward(model, x), y, self.candidates)
        rows, point = torch.arange(len(x), device=x.device), x
        beyond = torch.zeros_like(closest.distance)
        for step in range(self.steps):
            _, gaps, gradients = lead_gradients(model, point, y[rows], classes[rows])
            if step == 0:
                beyond = self.overshoot * gaps.amin(1)
            wanted = self.share * gaps + beyond[rows, None]
            point = step_to_nearest(point, wanted, gradients, threat, overshoot=0)
            hit = fooled(forward(model, point), y[rows], targeted=False)
            closest.record(point, hit, rows)
            rows, point = rows[~hit], point[~hit]
            if len(rows) == 0:
                break
        return closest.tighten(model, y)


@dataclass(frozen=True, slots=True)
class SuperDeepFool(MinimumNorm):
    """https://arxiv.org/abs/2303.12481, SDF(inf, 1), l2. Untargeted.

    DeepFool until the sample is fooled; then the perturbation is projected onto the gradient there, which is
    orthogonal to the boundary, and DeepFool goes on from the shorter one. The closest point is pulled in by bisection.

    Args:
        steps: linearisations a sample, of both kinds together, >= 1.
        overshoot, candidates: as for :class:`DeepFool`.
    """

    steps: int = 30
    overshoot: float = 0.02
    candidates: int = 9

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.candidates < 1 or self.overshoot <= 0:
            raise UnsupportedError("SuperDeepFool needs steps >= 1, candidates >= 1 and overshoot > 0")

    def _check(self, threat: Threat) -> None:
        refuse_targets(self, threat)

    def _search(self, model: Model, x: Tensor, y: Tensor, threat: Threat) -> Closest:
        closest = Closest(x, threat)
        classes = likeliest_others(forward(model, x), y, self.candidates)
        point = x
        for _ in range(self.steps):
            logits, gaps, gradients = lead_gradients(model, point, y, classes)
            hit = fooled(logits, y, targeted=False)
            closest.record(point, hit)
            leader = gaps.argmin(1)
            normal = gradients[torch.arange(len(x), device=x.device), leader]
            onward = step_to_nearest(point, gaps, gradients, threat, self.overshoot)
            point = torch.where(column(hit, x), self._projected(point, x, normal, threat), onward)
        closest.record(point, fooled(forward(model, point), y, targeted=False))
        return closest.tighten(model, y)

    def _projected(self, point: Tensor, x: Tensor, normal: Tensor, threat: Threat) -> Tensor:
        """The perturbation's shadow on the normal of the boundary."""
        gain = ((point - x) * normal).flatten(1).sum(1)
        return (x + step_to_hyperplane(x, normal, gain, threat.norm, threat.bounds)).clamp(*threat.bounds)


def refuse_targets(attack: object, threat: Threat) -> None:
    """Refuses a norm that the attack does not know and, as it goes to the nearest class, a targeted threat.

    Raises:
        UnsupportedError: naming what would do instead.
    """
    check_norm(attack, threat)
    if threat.targeted:
        raise UnsupportedError(f"{type(attack).__name__} cannot be targeted: use fmn, fab_t or ddn")
