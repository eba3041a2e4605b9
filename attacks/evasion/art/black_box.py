"""Adapters of the toolbox's attacks that need labels or scores only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...attack import Access, Model
from ...errors import UnsupportedError
from ...streams import Streams
from ...threat import Norm, Threat
from ..art_adapter import ARTAttack, fooling_start
from .bridge import to_numpy


@dataclass(frozen=True, slots=True)
class BoundaryART(ARTAttack):
    """https://arxiv.org/abs/1712.04248. A random walk along the decision boundary; needs labels only. l2.

    Args:
        steps: most steps of the walk; each takes 40 queries or more.
        max_queries: queries after which a sample is left at the best point found.
        init_size: random points tried as a start.
    """

    steps: int = 5000
    max_queries: int = 25_000
    init_size: int = 100

    toolbox: ClassVar[str] = "boundary:BoundaryAttack"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    access: ClassVar[Access] = "labels"
    one_by_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.steps, self.max_queries, self.init_size) < 1:
            raise UnsupportedError("BoundaryART needs steps >= 1, max_queries >= 1 and init_size >= 1")

    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        del shape
        return {"targeted": threat.targeted, "max_iter": self.steps, "verbose": False}

    def budget(self) -> int:
        return self.max_queries

    def inputs(self, model: Model, x: Tensor, y: Tensor, threat: Threat, streams: Streams) -> dict[str, Any] | None:
        start = fooling_start(model, x, y, threat, streams, self.init_size)
        return None if start is None else {"x_adv_init": to_numpy(start)}


@dataclass(frozen=True, slots=True)
class SignOPTART(ARTAttack):
    """https://arxiv.org/abs/1909.10773. Descends on the distance to the boundary along a direction; labels only. l2.

    Untargeted: the toolbox's targeted variant wants inputs of the target class.

    Args:
        steps: most descent steps.
        directions: random directions tried at first.
        samples: queries to estimate one gradient's sign.
        max_queries: queries after which a sample is left at the best point found.
    """

    steps: int = 1000
    directions: int = 100
    samples: int = 200
    max_queries: int = 20_000

    toolbox: ClassVar[str] = "sign_opt:SignOPTAttack"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    access: ClassVar[Access] = "labels"
    one_by_one: ClassVar[bool] = True
    targets: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.steps, self.directions, self.samples, self.max_queries) < 1:
            raise UnsupportedError("SignOPTART needs steps, directions, samples and max_queries >= 1")

    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        del threat, shape
        return {
            "targeted": False,
            "max_iter": self.steps,
            "num_trial": self.directions,
            "k": self.samples,
            "query_limit": self.max_queries,
            "verbose": False,
        }

    def classes(self, k: int) -> int:
        return max(k, 3)  # the toolbox mistakes two for one output

    def budget(self) -> int:
        return self.max_queries


@dataclass(frozen=True, slots=True)
class SimBAART(ARTAttack):
    """https://arxiv.org/abs/1905.07121. Changes one random feature at a time if that helps; needs scores. l2, images.

    Made to fool in few queries, not by the smallest change: every feature moves by the same step, so that on linear
    models it ends 1.5 to 1.9 times as far as need be, with steps of 0.1 1.3 to 1.55 times.

    Args:
        step_size: how much a feature changes at a time, as a share of the bounds' width; smaller ones end closer and
            take more queries.
        max_queries: most queries for a sample; two for each feature tried.
    """

    step_size: float = 0.2
    max_queries: int = 5000

    toolbox: ClassVar[str] = "simba:SimBA"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    access: ClassVar[Access] = "scores"
    one_by_one: ClassVar[bool] = True
    images: ClassVar[bool] = True
    probabilities: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.step_size <= 1 or self.max_queries < 2:
            raise UnsupportedError("SimBAART needs 0 < step_size <= 1 and max_queries >= 2")

    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        del shape
        low, high = threat.bounds
        return {
            "attack": "px",
            "targeted": threat.targeted,
            "epsilon": self.step_size * (high - low),
            "max_iter": self.max_queries // 2,
            "verbose": False,
        }

    def budget(self) -> int:
        return self.max_queries


@dataclass(frozen=True, slots=True)
class ZOOART(ARTAttack):
    """https://arxiv.org/abs/1708.03999. Carlini & Wagner's attack with gradients from score differences. l2.

    Without the paper's coarse-to-fine resizing, which the toolbox does only for inputs of 32 pixels and more. Two
    defects of the toolbox are mended: it clips steps to the bounds of the inputs, so that no feature could be
    lowered, and it takes each step again in all that follow. What remains is Adam, which changes all features at one
    pace and crosses the boundary before they settle: on linear models 1.3 to 1.5 times as far away as need be.

    Args:
        adam_steps: for each value of the constant; each takes ``2 * parallel + 1`` queries.
        parallel: coordinates estimated at a time, at most all.
        learning_rate: of Adam.
        binary_search_steps: values of the constant tried.
        initial_const: the first.
    """

    adam_steps: int = 100
    parallel: int = 64
    learning_rate: float = 0.05
    binary_search_steps: int = 3
    initial_const: float = 10.0

    toolbox: ClassVar[str] = "zoo:ZooAttack"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    access: ClassVar[Access] = "scores"
    one_by_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.adam_steps, self.parallel, self.binary_search_steps) < 1:
            raise UnsupportedError("ZOOART needs adam_steps, parallel and binary_search_steps >= 1")
        if min(self.learning_rate, self.initial_const) <= 0:
            raise UnsupportedError("ZOOART needs learning_rate > 0 and initial_const > 0")

    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        return {
            "targeted": threat.targeted,
            "learning_rate": self.learning_rate,
            "max_iter": self.adam_steps,
            "binary_search_steps": self.binary_search_steps,
            "initial_const": self.initial_const,
            "use_resize": False,
            "use_importance": False,
            "nb_parallel": min(self.parallel, shape.numel()),
            "batch_size": 1,
            "verbose": False,
        }

    def mend(self, attack: Any, threat: Threat) -> None:
        advance, step = attack._optimizer, attack._optimizer_adam_coordinate

        def once(x: NDArray[Any], target: NDArray[Any], constant: NDArray[Any]) -> NDArray[Any]:
            attack._current_noise = np.zeros_like(attack._current_noise)
            return np.clip(advance(x, target, constant), *threat.bounds)

        attack._optimizer = once
        attack._optimizer_adam_coordinate = lambda *given: step(*given[:-1], False)  # the last one clips the step
