"""Fast adaptive boundary attack: alternates between the linearised boundary and the way back to the clean input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..errors import UnsupportedError
from ..losses import margin, targeted_margin
from ..models import attacking
from ..search import fooled, forward, input_gradient
from ..streams import Streams
from ..threat import Norm, Threat
from .hyperplane import step_to_hyperplane
from .minimum_norm import Closest, column, lead_gradients, likeliest_others

_DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": float("inf")}


@dataclass(frozen=True, slots=True)
class _Boundary:
    """Which boundary a run heads for: that between ``source`` and the nearest of ``classes``.

    Attributes:
        source: int64 ``(n,)``; None: whichever class leads besides the only one of ``classes``.
        classes: int64 ``(n, c)``.
    """

    source: Tensor | None
    classes: Tensor

    def linearise(self, model: Model, point: Tensor, rows: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """Gap ``(m,)`` (negative beyond the boundary) and its gradient ``(m, ...)`` at points of some samples."""
        classes = self.classes[rows]
        if self.source is None:
            _, gap, gradient = input_gradient(model, point, lambda z: margin(z, classes[:, 0]))
            return gap, -gradient
        source = self.source[rows]
        if classes.shape[1] == 1:
            _, lead, gradient = input_gradient(model, point, lambda z: targeted_margin(z, source, classes[:, 0]))
            return -lead, gradient
        _, gaps, gradients = lead_gradients(model, point, source, classes)
        length = gradients.flatten(2).norm(_DUAL[norm], dim=2).clamp_min(1e-12)
        nearest = (gaps.abs() / length).argmin(1)
        at = torch.arange(len(point), device=point.device)
        return gaps[at, nearest], gradients[at, nearest]


@dataclass(frozen=True, slots=True)
class _Fab:
    """What FAB and FAB-T share."""

    steps: int = 100
    restarts: int = 1
    inside: bool = False
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradients"
    minimal: ClassVar[bool] = True
    unit: ClassVar[Unit] = "steps"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UnsupportedError(f"FAB needs steps >= 1 and restarts >= 1, not {self.steps} and {self.restarts}")
        if not (0 < self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            raise UnsupportedError("FAB needs 0 < alpha_max <= 1, eta >= 1 and 0 < beta < 1")

    def _boundaries(self, logits: Tensor, y: Tensor, threat: Threat) -> Iterator[_Boundary]:
        raise NotImplementedError

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """The closest adversarial inputs found, shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: steps of each sample until a point lay within eps, else in all.

        Raises:
            UnsupportedError: for l0, when the model gives no gradients.
        """
        check_norm(self, threat)
        streams = Streams.of(generator, len(x), x.device)
        closest = Closest(x.detach(), threat)
        if len(x) == 0:
            return closest.x_adv, closest.spent
        with attacking(model):
            logits = forward(model, closest.x)
            open_ = ~fooled(logits, y, targeted=threat.targeted)
            runs = [b for _ in range(self.restarts) for b in self._boundaries(logits, y, threat)]
            per_restart = len(runs) // self.restarts
            for run, boundary in enumerate(runs):
                rows = (open_ & ~self._settled(closest)).nonzero().squeeze(1)
                if len(rows):
                    start = self._start(closest, rows, streams.fork(run)) if run >= per_restart else closest.x[rows]
                    self._run(model, closest, y, boundary, rows, start)
            closest.tighten(model, y)
        return closest.x_adv, closest.spent

    def _settled(self, closest: Closest) -> Tensor:
        """Bool ``(n,)``: samples that need no more work."""
        return (closest.distance <= closest.threat.eps) & self.inside

    def _start(self, closest: Closest, rows: Tensor, streams: Streams) -> Tensor:
        """Random points at most half as far as the closest found, or as eps."""
        x, threat = closest.x[rows], closest.threat
        own = streams.select(rows)
        noise = (2 * own.uniform(x.shape[1:]) - 1 if threat.norm == "linf" else own.normal(x.shape[1:])).to(x)
        size = threat.distance(noise, torch.zeros_like(noise)).clamp_min(1e-12)
        radius = closest.distance[rows].clamp_max(threat.eps) / 2
        return (x + column(radius / size, x) * noise).clamp(*threat.bounds)

    def _run(self, model: Model, closest: Closest, y: Tensor, boundary: _Boundary, rows: Tensor, point: Tensor) -> None:
        """One walk of the samples ``rows`` from ``point``."""
        threat = closest.threat
        for _ in range(self.steps):
            gap, normal = boundary.linearise(model, point, rows, threat.norm)
            point = self._move(point, closest.x[rows], gap, normal, threat)
            hit = fooled(forward(model, point), y[rows], targeted=threat.targeted)
            closest.record(point, hit, rows)
            x = closest.x[rows]
            point = torch.where(column(hit, x), x + self.beta * (point - x), point)
            if self.inside:
                keep = (~self._settled(closest)[rows]).nonzero().squeeze(1)
                if len(keep) == 0:
                    return
                rows, point = rows[keep], point[keep]

    def _move(self, point: Tensor, x: Tensor, gap: Tensor, normal: Tensor, threat: Threat) -> Tensor:
        """Towards the boundary from ``point``, biased to where it is closest to ``x``; shape of ``x``."""
        onward = step_to_hyperplane(point, normal, gap, threat.norm, threat.bounds)
        from_x = gap + ((point - x) * normal).flatten(1).sum(1)
        direct = step_to_hyperplane(x, normal, from_x, threat.norm, threat.bounds)
        zero = torch.zeros_like(x)
        near, far = threat.distance(onward, zero), threat.distance(direct, zero)
        alpha = column((near / (near + far).clamp_min(1e-12)).clamp_max(self.alpha_max), x)
        moved = (1 - alpha) * (point + self.eta * onward) + alpha * (x + self.eta * direct)
        return moved.clamp(*threat.bounds)


@dataclass(frozen=True, slots=True)
class FAB(_Fab):
    """https://arxiv.org/abs/1907.02044, linf, l2, l1. Heads for the nearest of all boundaries. Untargeted.

    Args:
        steps: linearisations a run, each one forward pass, one more forward, and a backward pass per candidate.
        restarts: runs; all but the first begin at random.
        inside: work no more on a sample once a point inside ``threat.eps`` is found, as AutoAttack does.
        alpha_max: largest bias towards the clean input.
        eta: over-relaxation of the steps.
        beta: share of the perturbation that is kept after a success.
        candidates: how many classes besides the label to consider, likeliest on ``x`` first.
    """

    candidates: int = 9

    def _boundaries(self, logits: Tensor, y: Tensor, threat: Threat) -> Iterator[_Boundary]:
        if threat.targeted:
            raise UnsupportedError("FAB cannot be targeted: use fab_t")
        yield _Boundary(y, likeliest_others(logits, y, self.candidates))


@dataclass(frozen=True, slots=True)
class FABT(_Fab):
    """https://arxiv.org/abs/1907.02044 as AutoAttack (https://arxiv.org/abs/2003.01690) runs it: FAB-T.

    One run towards each of the likeliest wrong classes, with one backward pass a step. Under a targeted threat the
    target is given, and the boundary is that with whichever other class leads: one run.

    Args:
        steps, restarts, inside, alpha_max, eta, beta: as for :class:`FAB`.
        n_targets: how many classes to try, likeliest on ``x`` first; at most all others.
    """

    n_targets: int = 9

    def _boundaries(self, logits: Tensor, y: Tensor, threat: Threat) -> Iterator[_Boundary]:
        if threat.targeted:
            yield _Boundary(None, y[:, None])
            return
        for target in likeliest_others(logits, y, self.n_targets).unbind(1):
            yield _Boundary(y, target[:, None])
