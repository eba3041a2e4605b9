"""Auto-PGD: projected gradient ascent that chooses its own step size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..ball import Ball, sparse_sign, unit
from ..errors import UnsupportedError
from ..losses import LossName, objective, targeted_dlr, targeted_margin
from ..models import attacking
from ..search import ActiveSet, attackable, fooled, forward, input_gradient
from ..streams import Streams
from ..threat import Norm, Threat

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits (m, k), rows (m,)) -> (m,)``; ``rows`` are the samples' places in the batch."""


@dataclass(frozen=True, slots=True)
class APGD:
    """https://arxiv.org/abs/2003.01690, and https://arxiv.org/abs/2103.01208 for l1.

    Steps of ``2 * eps`` with momentum; at checkpoints, where the loss has not grown often enough, the step is halved
    and the walk goes back to its best point. For l1 the steps are sparse and the sparsity adapts; unlike in the paper,
    features that have met their bound do not count, and the sparsity can shrink to a single feature.

    Args:
        steps: gradient steps, >= 1.
        loss: ``ce``, ``dlr`` (3 classes or more) or ``margin``.
        restarts: independent runs on the samples not yet fooled.
        rho: share of steps between two checkpoints that must raise the loss for the step size to stay.
        large_radius: for l1 only, spend the first 60 % of the steps in balls of 3 and 2 times the radius.

    Raises:
        UnsupportedError: for l0, when the model gives no gradients, or has too few classes for the loss.
    """

    steps: int = 100
    loss: LossName = "ce"
    restarts: int = 1
    rho: float = 0.75
    large_radius: bool = False

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradients"
    unit: ClassVar[Unit] = "steps"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UnsupportedError(f"APGD needs steps >= 1 and restarts >= 1, not {self.steps} and {self.restarts}")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: points examined of each sample until it fell, else in all."""
        check_norm(self, threat)
        stages = _stages(self.steps, threat, large_radius=self.large_radius)
        streams = Streams.of(generator, len(x), x.device)
        loss = objective(self.loss, targeted=threat.targeted)
        with attacking(model):
            search = ActiveSet(x, attackable(model, x, y, targeted=threat.targeted))
            for restart in range(self.restarts):
                if search.restart():
                    climb = Climb(model, x, y, search, lambda logits, rows: loss(logits, y[rows]), self.rho)
                    climb.run(stages, streams.fork(restart))
        return search.x_adv, search.spent


@dataclass(frozen=True, slots=True)
class APGDT:
    """https://arxiv.org/abs/2003.01690, APGD-T: one run of APGD towards each of the likeliest wrong classes.

    Under a targeted threat the target is given, and the class to leave is the one predicted on ``x``: one run.

    Args:
        steps: gradient steps for each target, >= 1.
        n_targets: how many classes to try, likeliest on ``x`` first; at most all others.
        loss: ``dlr`` (4 classes or more), ``margin``, or ``auto``: dlr where the classes suffice, else margin.
        restarts, rho, large_radius: as for :class:`APGD`.

    Raises:
        UnsupportedError: for l0, when the model gives no gradients, or has too few classes for the loss.
    """

    steps: int = 100
    n_targets: int = 9
    loss: Literal["auto", "dlr", "margin"] = "auto"
    restarts: int = 1
    rho: float = 0.75
    large_radius: bool = False

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradients"
    unit: ClassVar[Unit] = "steps"

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.n_targets) < 1:
            raise UnsupportedError("APGDT needs steps >= 1, restarts >= 1 and n_targets >= 1")
        if self.loss not in ("auto", "dlr", "margin"):
            raise UnsupportedError(f"loss of APGDT is {self.loss!r}: choose auto, dlr or margin")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: points examined of each sample until it fell, else in all."""
        check_norm(self, threat)
        stages = _stages(self.steps, threat, large_radius=self.large_radius)
        streams = Streams.of(generator, len(x), x.device)
        if len(x) == 0:
            return x.clone(), torch.zeros_like(y)
        with attacking(model):
            clean = forward(model, x)
            search = ActiveSet(x, ~fooled(clean, y, targeted=threat.targeted))
            ranked = _likeliest_wrong(clean, y, self.n_targets)
            pairs = [(clean.argmax(1), y)] if threat.targeted else [(y, target) for target in ranked]
            for run, (source, target) in enumerate(pairs * self.restarts):
                if search.restart():
                    climb = Climb(model, x, y, search, self._row_loss(source, target, clean.shape[1]), self.rho)
                    climb.run(stages, streams.fork(run))
        return search.x_adv, search.spent

    def _row_loss(self, source: Tensor, target: Tensor, k: int) -> RowLoss:
        use_dlr = self.loss == "dlr" or (self.loss == "auto" and k >= 4)
        loss = targeted_dlr if use_dlr else targeted_margin
        return lambda logits, rows: loss(logits, source[rows], target[rows])


def _likeliest_wrong(clean: Tensor, y: Tensor, n_targets: int) -> list[Tensor]:
    """The classes with the largest logits besides ``y``, one ``(n,)`` tensor for each rank."""
    others = clean.scatter(1, y[:, None], -float("inf"))
    count = min(n_targets, clean.shape[1] - 1)
    return list(others.topk(count, dim=1).indices.unbind(1))


def _stages(steps: int, threat: Threat, *, large_radius: bool) -> list[tuple[Threat, int]]:
    """Balls to search one after the other, with their steps: 3, 2 and 1 times the radius for 30, 30 and 40 %."""
    if not large_radius:
        return [(threat, steps)]
    if threat.norm != "l1":
        raise UnsupportedError(f"large_radius belongs to l1, the norm is {threat.norm}")
    first = math.ceil(0.3 * steps)
    counts = [first, first, steps - 2 * first]
    return [(_scaled(threat, factor), count) for factor, count in zip((3, 2, 1), counts, strict=True) if count > 0]


def _scaled(threat: Threat, factor: float) -> Threat:
    return Threat(threat.norm, factor * threat.eps, threat.targeted, threat.bounds)


@dataclass(slots=True)
class State:
    """Where the walk of each active sample stands: tensors ``(m, ...)`` and ``(m,)``, replaced as it goes on.

    Attributes:
        point, gradient, loss: this iterate.
        previous: the iterate before.
        best, best_gradient, best_loss: the iterate of highest loss.
        size: step size.
        rises: steps since the last checkpoint that raised the loss.
        checked_loss, halved: best loss at the last checkpoint, and whether the step was halved there.
        spread, changed: for l1, features that a step moves, and features changed in ``best`` at the last checkpoint.
    """

    point: Tensor
    gradient: Tensor
    loss: Tensor
    previous: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    size: Tensor
    rises: Tensor
    checked_loss: Tensor
    halved: Tensor
    spread: Tensor
    changed: Tensor

    def select(self, rows: Tensor) -> State:
        return State(*(getattr(self, field.name)[rows] for field in fields(self)))

    def advance(self, point: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Takes the next iterate, keeping the best one."""
        self.rises += loss > self.loss
        better = loss > self.best_loss
        self.best = torch.where(_column(better, point), point, self.best)
        self.best_gradient = torch.where(_column(better, point), gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.previous, self.point, self.gradient, self.loss = self.point, point, gradient, loss

    def return_to_best(self, where: Tensor) -> None:
        self.point = torch.where(_column(where, self.point), self.best, self.point)
        self.gradient = torch.where(_column(where, self.point), self.best_gradient, self.gradient)


class Climb:
    """One run of APGD on the active samples of a search, with any loss.

    Args:
        model, x, y: as given to the attack, the whole batch.
        search: fooling points and best attempts go here; fooled samples drop out.
        loss: the loss to raise.
        rho: see :class:`APGD`.
    """

    def __init__(self, model: Model, x: Tensor, y: Tensor, search: ActiveSet, loss: RowLoss, rho: float = 0.75) -> None:
        self.model, self.x, self.y, self.search, self.loss, self.rho = model, x, y, search, loss, rho

    def run(self, stages: list[tuple[Threat, int]], streams: Streams, start: Tensor | None = None) -> None:
        """Searches the ball of each stage in turn, each from the best point of the one before.

        Args:
            stages: threats and the steps to spend in each; only points in the last one's ball count.
            streams: one for each sample of the batch, for the random start.
            start: ``(n, ...)``, points to begin from instead.
        """
        rows = self.search.index
        point = _random_start(stages[0][0], self.x[rows], streams.select(rows)) if start is None else start[rows]
        for threat, steps in stages[:-1]:
            point = self._stage(threat, steps, point, informed=True, final=False)
        threat, steps = stages[-1]
        self._stage(threat, steps, point, informed=start is not None or len(stages) > 1, final=True)

    def _stage(self, threat: Threat, steps: int, point: Tensor, *, informed: bool, final: bool) -> Tensor:
        """The active samples' points of highest loss; in the final stage fooled samples are recorded and drop out."""
        ball = Ball.around(self.x[self.search.index], threat)
        state = self._begin(ball, ball.project(point.clone()), informed=informed, final=final)
        schedule = Schedule(threat, steps, self.rho)
        for step in range(steps):
            if final:
                keep = self.search.compact()
                if keep is not None:
                    if len(keep) == 0:
                        return point
                    state, ball = state.select(keep), ball.select(keep)
            point = schedule.move(state, ball, first=step == 0)
            if step == steps - 1:
                self._finish(state, point, threat, final=final)
                break
            loss, gradient = self._ascent(point, threat, final=final)
            state.advance(point, loss, gradient)
            schedule.check(state, ball)
        return state.best

    def _begin(self, ball: Ball, point: Tensor, *, informed: bool, final: bool) -> State:
        loss, gradient = self._ascent(point, ball.threat, final=final)
        d = point[0].numel()
        everything = torch.full_like(loss, d, dtype=torch.float32)
        changed = _changed(point, ball)
        return State(
            point=point,
            gradient=gradient,
            loss=loss,
            previous=point,
            best=point,
            best_gradient=gradient,
            best_loss=loss,
            size=torch.full_like(loss, ball.threat.eps * (1 if ball.threat.norm == "l1" else 2)),
            rises=torch.zeros_like(loss),
            checked_loss=loss,
            halved=torch.ones_like(loss, dtype=torch.bool),
            spread=_count(changed & _free(point, ball)) / 1.5 if informed else 0.2 * everything,
            changed=_count(changed) if informed else everything,
        )

    def _ascent(self, point: Tensor, threat: Threat, *, final: bool) -> tuple[Tensor, Tensor]:
        rows = self.search.index
        logits, loss, gradient = input_gradient(self.model, point, lambda z: self.loss(z, rows))
        if final:
            self.search.record(point, fooled(logits, self.y[rows], targeted=threat.targeted))
        return loss, gradient

    def _finish(self, state: State, point: Tensor, threat: Threat, *, final: bool) -> None:
        """The last point needs no gradient."""
        rows = self.search.index
        logits = forward(self.model, point)
        state.advance(point, self.loss(logits, rows), state.gradient)
        if final:
            self.search.record(point, fooled(logits, self.y[rows], targeted=threat.targeted))
            self.search.attempt(state.best, state.best_loss)


class Schedule:
    """The steps of one stage, and the checkpoints at which step size and sparsity change."""

    def __init__(self, threat: Threat, steps: int, rho: float) -> None:
        self.threat, self.rho = threat, rho
        share = 0.04 if threat.norm == "l1" else 0.22
        self.interval = max(int(share * steps), 1)
        self.shortest = max(int(0.06 * steps), 1)
        self.shrink = max(int(0.03 * steps), 1)
        self.since = 0

    def move(self, state: State, ball: Ball, *, first: bool) -> Tensor:
        """The next iterate, a new tensor. Momentum .75 except in l1 and in the first step."""
        size = _column(state.size, state.point)
        if self.threat.norm == "l1":
            return ball.project(
                state.point + size * sparse_sign(ball, state.point, state.gradient, state.spread.long())
            )
        point = ball.project(torch.addcmul(state.point, unit(state.gradient, self.threat.norm), size))
        if first:
            return point
        # 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}) added to x_k, in three in-place passes
        point.mul_(0.75).add_(state.point, alpha=0.5).sub_(state.previous, alpha=0.25)
        return ball.project(point)

    def check(self, state: State, ball: Ball) -> None:
        """Counts a step; at a checkpoint adapts each sample's step and may send it back to its best point."""
        self.since += 1
        if self.since < self.interval:
            return
        if self.threat.norm == "l1":
            self._adapt_sparsity(state, ball)
        else:
            self._halve(state)
            self.interval = max(self.interval - self.shrink, self.shortest)
        self.since = 0

    def _halve(self, state: State) -> None:
        oscillates = state.rises <= self.rho * self.since
        stalls = ~state.halved & (state.checked_loss >= state.best_loss)
        halve = oscillates | stalls
        state.size = torch.where(halve, state.size / 2, state.size)
        state.return_to_best(halve)
        state.halved, state.checked_loss = halve, state.best_loss
        state.rises = torch.zeros_like(state.rises)

    def _adapt_sparsity(self, state: State, ball: Ball) -> None:
        changed = _changed(state.best, ball)
        count = _count(changed)
        sparser = count < 0.95 * state.changed
        eps = self.threat.eps
        state.size = torch.where(sparser, eps, state.size / 1.5).clamp(eps / 10, eps)
        state.spread, state.changed = _count(changed & _free(state.best, ball)) / 1.5, count
        state.return_to_best(sparser)


def _random_start(threat: Threat, x: Tensor, streams: Streams) -> Tensor:
    """For l1 a projected Gaussian, which is sparse."""
    if threat.norm == "l1":
        return threat.project(x + streams.normal(x.shape[1:]).to(x), x)
    return threat.random_start(x, streams)


def _changed(point: Tensor, ball: Ball) -> Tensor:
    """Bool, which features of each sample differ from the centre by more than rounding; shape of ``point``."""
    return (point - ball.x).abs() > 1e-5 * ball.threat.eps


def _free(point: Tensor, ball: Ball) -> Tensor:
    """Bool, which features are not at a bound."""
    low, high = ball.threat.bounds
    return (point > low) & (point < high)


def _count(features: Tensor) -> Tensor:
    return features.flatten(1).sum(1).float()


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
