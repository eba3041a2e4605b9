"""Auto: the default attack, as strong as AutoAttack at a small part of its cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..ball import Ball, sparse_step, unit
from ..errors import UnsupportedError
from ..losses import margin, targeted_margin
from ..models import attacking
from ..search import ActiveSet, fooled, forward, input_gradient
from ..streams import Streams
from ..threat import Norm, Threat
from .apgd import Climb
from .square import Square

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits (m, k), rows (m,)) -> (m,)``; ``rows`` are the samples' places in the batch."""

_PATIENCE = 3
"""Targets that every sample gets."""

_DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


@dataclass(frozen=True, slots=True)
class Auto:
    """Short margin ascents, cheapest first, and long ones only where they can still matter.

    1. One ascent on the margin (largest wrong logit minus the true one).
    2. One ascent towards each of ``n_targets`` classes; each sample takes next the untried class whose logit has come
       closest at any point visited so far. After three of them only samples go on whose shortfall is below
       ``hopeless``: the missing margin over (eps times the gradient's dual norm), that is, by what share the radius
       would have to grow if the model were linear from here.
    3. Everything for the samples that are nearly fooled, those whose shortfall is below ``focus``: APGD on the margin
       with restarts, then Square, which finds what gradients hide.

    The short ascents use momentum and a step that falls from ``2 * eps`` to zero along a cosine. A sample drops out as
    soon as it is fooled. What is spent on a sample depends on that sample alone, so the result does not depend on
    batch size or order. Losses are margins: independent of the logits' scale up to rounding, and fit for two classes.
    Where gradients mislead everywhere (:mod:`~auditorch.attacks.masking` tells), use ``autoattack``.

    No theorem stands behind leaving samples alone: the shortfall is a bound for linear models only. What stands behind
    it is a measurement. Of 660 samples that the reference AutoAttack fooled on five small networks, four of them
    adversarially trained, in linf, l2 and l1, this missed 2 (95 % interval 0.1 to 1.1 %), and it fooled 7 more, with a
    ninth to a fifteenth of the backward passes (``benchmarks/ensembles.py``, ``docs/benchmarks.md``).
    ``hopeless=inf`` leaves nobody alone.

    Args:
        steps: gradient steps of each short ascent, >= 1.
        n_targets: classes to try, at most all others.
        hopeless: shortfall from which a sample is left alone after three targets; infinity for never.
        focus: shortfall below which a sample is worth everything; 0 for none.
        focus_steps, focus_restarts: of APGD.
        focus_queries: of Square, at most; 0 for none.

    Raises:
        UnsupportedError: for l0, or when the model gives no gradients.
    """

    steps: int = 20
    n_targets: int = 9
    hopeless: float = 1.0
    focus: float = 0.1
    focus_steps: int = 100
    focus_restarts: int = 5
    focus_queries: int = 1000

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradients"
    unit: ClassVar[Unit] = "passes"

    def __post_init__(self) -> None:
        if min(self.steps, self.n_targets, self.focus_steps) < 1:
            raise UnsupportedError("auto needs steps, n_targets and focus_steps >= 1")
        if min(self.hopeless, self.focus, self.focus_restarts, self.focus_queries) < 0:
            raise UnsupportedError("auto needs hopeless, focus, focus_restarts and focus_queries >= 0")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: forward passes of each sample until it fell, else in all."""
        check_norm(self, threat)
        if len(x) == 0:
            return x.clone(), torch.zeros_like(y)
        streams = Streams.of(generator, len(x), x.device)
        with attacking(model):
            hunt = _Hunt(model, x, y, threat, streams)
            hunt.untargeted(self.steps)
            if not threat.targeted:
                for target in range(min(self.n_targets, hunt.gap.shape[1] - 1)):
                    if target == _PATIENCE:
                        hunt.keep_within(self.hopeless)
                    hunt.towards_nearest(self.steps)
            hunt.keep_within(self.focus)
            for _ in range(self.focus_restarts):
                hunt.climb(self.focus_steps)
            if self.focus_queries:
                hunt.query(self.focus_queries)
        return hunt.search.x_adv, hunt.search.spent


class _Hunt:
    """What is known of a batch under attack.

    Attributes:
        search: who is fooled, who is still to fool, the best attempts.
        gap: ``(n, k)``, for each class the largest lead over the class to leave at any point visited.
        tried: bool ``(n, k)``, classes already aimed at.
        shortfall: ``(n,)``, the missing margin over eps times the dual norm of its gradient, least over the ascents.
    """

    def __init__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, streams: Streams) -> None:
        self.model, self.x, self.y, self.threat, self.streams = model, x, y, threat, streams
        clean = forward(model, x)
        self.search = ActiveSet(x, ~fooled(clean, y, targeted=threat.targeted))
        self.search.spent += 1
        self.worthwhile = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.gap = self._leads(clean, y)
        self.tried = torch.zeros_like(self.gap, dtype=torch.bool)
        self.shortfall = torch.full((len(x),), float("inf"), device=x.device)
        self.runs = 0

    def untargeted(self, steps: int) -> None:
        """Raises the margin, or, under a targeted threat, lowers that of the class to reach."""
        self._ascend(steps, self._margin)

    def towards_nearest(self, steps: int) -> None:
        """Aims at each sample's untried class with the smallest gap."""
        target = self.gap.masked_fill(self.tried, -float("inf")).argmax(1)
        rows = self._begin()
        if len(rows):
            self.tried[rows, target[rows]] = True
            self._ascend(steps, lambda z, rows: targeted_margin(z, self.y[rows], target[rows]))

    def climb(self, steps: int) -> None:
        """One run of APGD on the margin."""
        if len(self._begin()):
            self.runs += 1
            climb = Climb(self.model, self.x, self.y, self.search, self._margin)
            climb.run([(self.threat, steps)], self.streams.fork(self.runs))

    def query(self, queries: int) -> None:
        """Square on the margin."""
        rows = self._begin()
        if len(rows):
            square = Square(queries=queries)
            streams = self.streams.select(rows).fork(self.runs + 1)
            point, asked = square.trace(self.model, self.x[rows], self.y[rows], self.threat, generator=streams)
            self.search.spent[rows] += asked
            self._learn(forward(self.model, point), point)

    def keep_within(self, limit: float) -> None:
        """Leaves alone from now on the samples whose shortfall is at least ``limit``."""
        self.worthwhile = self.shortfall < limit

    def _begin(self) -> Tensor:
        self.search.index = (~self.search.success & self.worthwhile).nonzero().squeeze(1)
        return self.search.index

    def _ascend(self, steps: int, loss: RowLoss) -> None:
        rows = self._begin()
        if len(rows) == 0:
            return
        self.runs += 1
        ball = Ball.around(self.x[rows], self.threat)
        point = self.threat.random_start(ball.x, self.streams.select(rows).fork(self.runs))
        previous = point.clone()
        for step in range(steps):
            rows = self.search.index
            logits, value, gradient = input_gradient(self.model, point, lambda z, rows=rows: loss(z, rows))
            self._learn(logits, point)
            if step == steps - 1:
                self._measure(value, gradient)
            keep = self.search.compact()
            if keep is not None:
                if len(keep) == 0:
                    return
                point, previous, gradient, ball = point[keep], previous[keep], gradient[keep], ball.select(keep)
            point, previous = self._step(ball, point, previous, gradient, step, steps), point
        logits = forward(self.model, point)
        self._learn(logits, point)
        self.search.attempt(point, loss(logits, self.search.index))

    def _step(self, ball: Ball, point: Tensor, previous: Tensor, gradient: Tensor, step: int, steps: int) -> Tensor:
        size = self.threat.eps * (1 + math.cos(math.pi * step / steps))
        if self.threat.norm == "l1":
            return ball.project(point + size / 2 * sparse_step(ball, point, gradient, step / steps))
        new = ball.project(torch.add(point, unit(gradient, self.threat.norm), alpha=size))
        if step == 0:
            return new
        return ball.project(new.mul_(0.75).add_(point, alpha=0.5).sub_(previous, alpha=0.25))

    def _margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        value = margin(logits, self.y[rows])
        return -value if self.threat.targeted else value

    def _learn(self, logits: Tensor, point: Tensor) -> None:
        rows = self.search.index
        label = self.y[rows]
        self.search.record(point, fooled(logits, label, targeted=self.threat.targeted))
        self.gap[rows] = torch.maximum(self.gap[rows], self._leads(logits, label))

    def _leads(self, logits: Tensor, y: Tensor) -> Tensor:
        leads = logits - logits.gather(1, y[:, None])
        return leads.scatter_(1, y[:, None], -float("inf")).nan_to_num_(nan=-float("inf"), neginf=-float("inf"))

    def _measure(self, value: Tensor, gradient: Tensor) -> None:
        slope = torch.linalg.vector_norm(gradient.flatten(1), _DUAL[self.threat.norm], dim=1)
        rows = self.search.index
        missing = -value / (self.threat.eps * slope).clamp_min(1e-12)
        self.shortfall[rows] = torch.minimum(self.shortfall[rows], missing)
