"""Carlini & Wagner's attack: Adam on the squared l2 distance plus a constant times the margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Model
from ..errors import UnsupportedError
from ..losses import margin
from ..search import fooled, forward, input_gradient
from ..threat import Norm, Threat
from .adam import Adam
from .minimum_norm import Closest, MinimumNorm, column, cosine, linear_start

_EDGE = 1 - 1e-6


@dataclass(frozen=True, slots=True)
class CarliniWagner(MinimumNorm):
    """https://arxiv.org/abs/1608.04644, l2. Minimises ``distance^2 + c * max(margin, -confidence)`` over w, where
    the input is ``(tanh(w) + 1) / 2`` scaled to the bounds, so that the bounds always hold.

    The constant c is searched for each sample. Where the paper begins at a small one and at ``x``, this begins at the
    one that would be right if the model were linear (times ``caution``) and at the boundary that it would then have;
    later rounds begin at the closest point so far. The learning rate is annealed within a round. A sample whose
    objective stops falling leaves its round. What was found is pulled in by bisection at the end.

    Args:
        steps: most Adam steps in a round, >= 1.
        binary_search_steps: rounds, each with its own c, >= 1.
        learning_rate: of Adam in the first step of a round, in w, whose unit is about a quarter of the bounds' width.
        caution: how many times larger than for a linear model the first c is.
        confidence: the margin to reach, in logits.
        abort_early: let samples leave a round when a tenth of its steps has not lowered the objective.
    """

    steps: int = 100
    binary_search_steps: int = 5
    learning_rate: float = 0.1
    caution: float = 4.0
    confidence: float = 0.0
    abort_early: bool = True

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.binary_search_steps < 1:
            raise UnsupportedError("CarliniWagner needs steps >= 1 and binary_search_steps >= 1")
        if self.learning_rate <= 0 or self.caution <= 0 or self.confidence < 0:
            raise UnsupportedError("CarliniWagner needs learning_rate > 0, caution > 0 and confidence >= 0")

    def _search(self, model: Model, x: Tensor, y: Tensor, threat: Threat) -> Closest:
        closest = Closest(x, threat)
        start = linear_start(model, x, y, threat)
        closest.record(start, self._reached(forward(model, start), y, threat))
        c = self.caution * self._linear_constant(model, x, y, threat)
        low, high = torch.zeros_like(c), torch.full_like(c, float("inf"))
        for _ in range(self.binary_search_steps):
            begin = torch.where(column(closest.found, x), closest.x_adv, start)
            hit = _Round(self, model, closest, y, c).run(begin)
            low, high = torch.where(hit, low, c), torch.where(hit, c, high)
            c = torch.where(high.isinf(), 10 * c, torch.where(low == 0, high / 2, (low * high).sqrt()))
        return closest.tighten(model, y) if self.confidence == 0 else closest

    def _linear_constant(self, model: Model, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """The c ``(n,)`` for which the minimum lies on the boundary of the linearised model: 2 gap / |gradient|^2."""
        sign = -1.0 if threat.targeted else 1.0
        _, lead, gradient = input_gradient(model, x, lambda z: sign * margin(z, y))
        squared = gradient.flatten(1).square().sum(1)
        constant = 2 * (self.confidence - lead) / squared.clamp_min(1e-12)
        return constant.clamp(1e-6, 1e10)

    def _reached(self, logits: Tensor, y: Tensor, threat: Threat) -> Tensor:
        sign = -1.0 if threat.targeted else 1.0
        return fooled(logits, y, targeted=threat.targeted) & (sign * margin(logits, y) >= self.confidence)


class _Round:
    """Adam for one value of c; the tensors below hold the samples still in the round."""

    def __init__(self, attack: CarliniWagner, model: Model, closest: Closest, y: Tensor, c: Tensor) -> None:
        self.attack, self.model, self.closest, self.y = attack, model, closest, y
        self.rows = torch.arange(len(y), device=y.device)
        self.c = c
        self.hit = torch.zeros_like(y, dtype=torch.bool)

    def run(self, begin: Tensor) -> Tensor:
        """Bool ``(n,)``: which samples this c fooled; closer points go into the record."""
        attack, threat = self.attack, self.closest.threat
        sign = -1.0 if threat.targeted else 1.0
        middle, half = sum(threat.bounds) / 2, (threat.bounds[1] - threat.bounds[0]) / 2
        w = torch.atanh((begin - middle) / half * _EDGE)
        adam = Adam(w)
        before = torch.full_like(self.c, float("inf"))
        every = max(attack.steps // 10, 1)
        for step in range(attack.steps):
            squashed = torch.tanh(w)
            point = (middle + half * squashed).clamp_(*threat.bounds)
            label = self.y[self.rows]
            logits, lead, gradient = input_gradient(self.model, point, lambda z, label=label: sign * margin(z, label))
            reached = attack._reached(logits, label, threat)
            self.closest.record(point, reached, self.rows)
            self.hit[self.rows] |= reached
            delta = point - self.closest.x[self.rows]
            short = lead < attack.confidence
            slope = 2 * delta - column(self.c[self.rows] * short, delta) * gradient
            slope = slope * half * (1 - squashed.square())
            w = w - cosine(attack.learning_rate, attack.learning_rate / 100, step, attack.steps) * adam.direction(slope)
            if attack.abort_early and step % every == every - 1:
                objective = delta.flatten(1).square().sum(1) + self.c[self.rows] * (attack.confidence - lead).clamp_min(
                    0
                )
                keep = (objective < 0.9999 * before).nonzero().squeeze(1)
                if len(keep) == 0:
                    break
                self.rows, before = self.rows[keep], objective[keep]
                w = w[keep]
                adam.select(keep)
        return self.hit
