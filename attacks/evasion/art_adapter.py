"""Attacks of the Adversarial Robustness Toolbox behind the attack contract, all through one adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..attack import Access, Model, Randomness, check_norm
from ..errors import UnsupportedError
from ..losses import cross_entropy
from ..models import attacking
from ..search import attackable, fooled, forward, input_gradient
from ..streams import Streams
from ..threat import NORMS, Norm, Threat
from .art.bridge import (
    Enough,
    Logits,
    Witness,
    attack_class,
    classifier,
    exact_where_unchanged,
    to_numpy,
    undisturbed,
)
from .minimum_norm import Closest, column

_STRETCHES, _PULLS = (1.0, 1.0001, 1.001, 1.01), 10
"""Queries spent on each point found: to see that it fools in the batch too, and to pull it towards its input."""

_ORDER: dict[Norm, float] = {"linf": np.inf, "l2": 2}


@dataclass(frozen=True, slots=True)
class ARTAttack(ABC):
    """Base of all adapters. A subclass says which attack of the toolbox it is and how a threat becomes its arguments.

    Attacks marked ``one_by_one`` (all that draw random numbers) run sample by sample, seeded from the sample's own
    stream, so that results do not depend on the batch; every query is watched and the best point kept. The others
    run on the whole batch. Results are moved into the bounds and, unless ``minimal``, into the ball; if ``minimal``,
    what fools is then pulled towards the inputs, all samples at once.
    """

    toolbox: ClassVar[str]
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    access: ClassVar[Access] = "gradients"
    minimal: ClassVar[bool] = True
    one_by_one: ClassVar[bool] = False
    images: ClassVar[bool] = False
    probabilities: ClassVar[bool] = False
    targets: ClassVar[bool] = True

    @abstractmethod
    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        """What to construct the toolbox's attack with, for inputs ``(n, *shape)``."""

    def mend(self, attack: Any, threat: Threat) -> None:
        """Corrects what is wrong with the toolbox's ``attack``, in place."""
        del attack, threat

    def budget(self) -> int | None:
        """Queries after which a sample is given up; None: the toolbox's own loops end it."""
        return None

    def _limit(self) -> int | None:
        """Queries left to the toolbox for a sample."""
        budget = self.budget()
        return None if budget is None else max(budget - self.minimal * (len(_STRETCHES) + _PULLS), 1)

    def inputs(self, model: Model, x: Tensor, y: Tensor, threat: Threat, streams: Streams) -> dict[str, Any] | None:
        """Further arguments of ``generate`` for some samples; None when they cannot be attacked."""
        del model, x, y, threat, streams
        return {}

    def classes(self, k: int) -> int:
        """How many classes the toolbox sees for a model of ``k``; those beyond k are never predicted."""
        return k

    def labels(self, logits: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """The labels ``(n,)`` that the toolbox is given, from clean logits ``(n, k)`` and ``y``."""
        del logits, threat
        return y

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`.

        Raises:
            UnsupportedError: when norm, targets or input shape do not fit this attack.
        """
        self._check(x, threat)
        streams = Streams.of(generator, len(x), x.device)
        x_adv = x.detach().clone()
        with attacking(model):
            rows = attackable(model, x, y, targeted=threat.targeted).nonzero().squeeze(1)
            if len(rows) == 0:
                return x_adv
            logits = self._probe(model, x[rows], y[rows])
            label = self.labels(logits, y[rows], threat)
            runs = rows.split(1) if self.one_by_one else (rows,)
            given = label.split([len(run) for run in runs])
            for run, labels in zip(runs, given, strict=True):
                x_adv[run] = self._run(model, x[run], y[run], labels, threat, streams.select(run), logits.shape[1])
            if self.minimal:
                x_adv[rows] = self._tighten(model, x_adv[rows], x[rows], y[rows], threat)
        return x_adv

    def _check(self, x: Tensor, threat: Threat) -> None:
        check_norm(self, threat)
        name = type(self).__name__
        if threat.targeted and not self.targets:
            raise UnsupportedError(f"{name} cannot be targeted")
        if self.images and x.dim() != 4:
            raise UnsupportedError(f"{name} needs images (n, c, h, w), the inputs have shape {tuple(x.shape)}")

    def _probe(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Clean logits, with a clear refusal of models without gradients where gradients are needed."""
        if self.access == "gradients":
            return input_gradient(model, x, lambda logits: cross_entropy(logits, y))[0]
        return forward(model, x)

    def _run(
        self, model: Model, x: Tensor, y: Tensor, label: Tensor, threat: Threat, streams: Streams, k: int
    ) -> Tensor:
        seed, k = int(streams.bits((1,))[0, 0]), self.classes(k)
        extra = self.inputs(model, x, y, threat, streams)
        if extra is None:
            return x
        watch = Witness(x, y, threat, minimal=self.minimal, max_queries=self._limit()) if self.one_by_one else None
        module = Logits(model, x, k, threat.bounds, probabilities=self.probabilities, witness=watch)
        with undisturbed(seed):
            attack = attack_class(self.toolbox)(classifier(module, x, k, threat), **self.arguments(threat, x.shape[1:]))
            self.mend(attack, threat)
            result = to_numpy(x)
            with suppress(Enough):
                result = attack.generate(to_numpy(x), y=one_hot(label, k), **extra)
        if watch is not None and watch.best is not None:
            return watch.best
        return self._settle(torch.from_numpy(np.asarray(result)).to(x), x, threat)

    def _tighten(self, model: Model, points: Tensor, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Pulls the points ``(n, ...)`` towards their inputs, which the toolbox leaves at that.

        A point that fooled the model alone may lie so near the boundary that in a batch rounding puts it back.
        """
        closest = Closest(x.detach(), threat)
        for stretch in _STRETCHES:
            further = (x + stretch * (points - x)).clamp(*threat.bounds)
            closest.record(further, fooled(forward(model, further), y, targeted=threat.targeted))
        closest.tighten(model, y, _PULLS)
        return torch.where(column(closest.found, points), closest.x_adv, points)

    def _settle(self, points: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Moves the toolbox's result to where it counts."""
        points = exact_where_unchanged(points.nan_to_num(nan=threat.bounds[0]), x).clamp(*threat.bounds)
        return points if self.minimal else threat.project(points, x)


def one_hot(y: Tensor, k: int) -> NDArray[np.float32]:
    """Labels ``(n, k)`` as the toolbox wants them."""
    return np.eye(k, dtype=np.float32)[y.cpu().numpy()]


@dataclass(frozen=True, slots=True)
class HopSkipJumpART(ARTAttack):
    """https://arxiv.org/abs/1904.02144. Walks along the decision boundary; needs labels only. l2 and linf.

    Args:
        max_iter: steps along the boundary.
        max_eval: most queries to estimate one direction.
        init_eval: queries for the first direction; later ones grow with the root of the step.
        init_size: random points tried as a start.
        max_queries: queries after which a sample is left at the best point found; None: as the steps need.
    """

    max_iter: int = 50
    max_eval: int = 10_000
    init_eval: int = 100
    init_size: int = 100
    max_queries: int | None = None

    toolbox: ClassVar[str] = "hop_skip_jump:HopSkipJump"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    access: ClassVar[Access] = "labels"
    one_by_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.init_eval <= self.max_eval or self.max_iter < 1 or self.init_size < 1:
            raise UnsupportedError("HopSkipJumpART needs 1 <= init_eval <= max_eval, max_iter >= 1 and init_size >= 1")

    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        del shape
        return {
            "norm": _ORDER[threat.norm],
            "targeted": threat.targeted,
            "max_iter": self.max_iter,
            "max_eval": self.max_eval,
            "init_eval": self.init_eval,
            "batch_size": 256,
            "verbose": False,
        }

    def budget(self) -> int:
        # The toolbox halves its step until the point is adversarial, which rounding can make impossible; no step
        # that can still succeed takes more than a few hundred queries besides those for the direction.
        return self.max_queries or self.max_iter * (self.max_eval + 500)

    def inputs(self, model: Model, x: Tensor, y: Tensor, threat: Threat, streams: Streams) -> dict[str, Any] | None:
        start = fooling_start(model, x, y, threat, streams, self.init_size)
        return None if start is None else {"x_adv_init": to_numpy(start)}


def fooling_start(model: Model, x: Tensor, y: Tensor, threat: Threat, streams: Streams, tries: int) -> Tensor | None:
    """A point ``(1, ...)`` with the wrong (targeted: right) label for one sample, near the boundary; or None.

    Every other try is uniform noise, the rest are corners of the box, where a linear model varies most. Up to
    sixteen that fool are pulled towards ``x`` by bisection, and the closest is returned. The toolbox would draw its
    own from an unseeded generator.
    """
    low, high = threat.bounds
    draws = streams.uniform((tries, *x.shape[1:]))[0].to(x)
    draws[1::2] = draws[1::2].round()
    points = (low + (high - low) * draws).clamp(low, high)
    points = points[fooled(forward(model, points), y.expand(tries), targeted=threat.targeted)][:16]
    if len(points) == 0:
        return None
    inner = x.expand_as(points).clone()
    for _ in range(8):
        middle = (points + inner) / 2
        hit = fooled(forward(model, middle), y.expand(len(points)), targeted=threat.targeted)
        points[hit], inner[~hit] = middle[hit], middle[~hit]
    return points[threat.distance(points, x).argmin()][None]
