"""Adapters of the toolbox's attacks that need gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ...threat import Norm, Threat
from ..art_adapter import ARTAttack
from ..minimum_norm import likeliest_others


@dataclass(frozen=True, slots=True)
class EADART(ARTAttack):
    """https://arxiv.org/abs/1709.04114. Carlini & Wagner's objective plus an l1 term, by shrinkage. l1 and l2.

    Args:
        steps: iterations for each value of the constant.
        binary_search_steps: values of the constant tried.
        beta: weight of the l1 term; 0: 0.05 for l1, 0.001 for l2.
        learning_rate: first step size.
        initial_const: the first constant.
    """

    steps: int = 100
    binary_search_steps: int = 9
    beta: float = 0.0
    learning_rate: float = 0.01
    initial_const: float = 1e-3

    toolbox: ClassVar[str] = "elastic_net:ElasticNet"
    norms: ClassVar[tuple[Norm, ...]] = ("l1", "l2")

    def __post_init__(self) -> None:
        if self.steps < 1 or self.binary_search_steps < 1:
            raise UnsupportedError("EADART needs steps >= 1 and binary_search_steps >= 1")
        if self.beta < 0 or min(self.learning_rate, self.initial_const) <= 0:
            raise UnsupportedError("EADART needs beta >= 0, and learning_rate and initial_const above 0")

    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        del shape
        return {
            "targeted": threat.targeted,
            "decision_rule": threat.norm.upper(),
            "max_iter": self.steps,
            "binary_search_steps": self.binary_search_steps,
            "beta": self.beta or (0.05 if threat.norm == "l1" else 1e-3),
            "learning_rate": self.learning_rate,
            "initial_const": self.initial_const,
            "batch_size": 256,
            "verbose": False,
        }


@dataclass(frozen=True, slots=True)
class JSMAART(ARTAttack):
    """https://arxiv.org/abs/1511.07528. Raises two salient features at a time towards a target class. l0.

    Untargeted, the target is the likeliest wrong class on ``x``: the toolbox would draw one at random. Features only
    rise (or only fall), two at a time, so that it may end with several times as many changes as need be.

    Args:
        theta: how much a feature is raised (negative: lowered) at a time, as a share of the bounds' width.
        gamma: largest share of features changed.
    """

    theta: float = 1.0
    gamma: float = 1.0

    toolbox: ClassVar[str] = "saliency_map:SaliencyMapMethod"
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)

    def __post_init__(self) -> None:
        if not 0 < abs(self.theta) <= 1 or not 0 < self.gamma <= 1:
            raise UnsupportedError("JSMAART needs 0 < |theta| <= 1 and 0 < gamma <= 1")

    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        del shape
        low, high = threat.bounds
        return {"theta": self.theta * (high - low), "gamma": self.gamma, "batch_size": 256, "verbose": False}

    def labels(self, logits: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return y if threat.targeted else likeliest_others(logits, y, 1)[:, 0]


@dataclass(frozen=True, slots=True)
class NewtonFoolART(ARTAttack):
    """https://doi.org/10.1145/3134600.3134635 (Jang et al., 2017). Newton steps that lower the label's probability. l2.

    Run sample by sample: the toolbox takes all steps and returns the last point, the closest fooling one is kept here.

    Args:
        newton_steps: how many.
        eta: step size, as a share of the input's length.
    """

    newton_steps: int = 100
    eta: float = 0.01

    toolbox: ClassVar[str] = "newtonfool:NewtonFool"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    one_by_one: ClassVar[bool] = True
    probabilities: ClassVar[bool] = True
    targets: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.newton_steps < 1 or self.eta <= 0:
            raise UnsupportedError("NewtonFoolART needs newton_steps >= 1 and eta > 0")

    def arguments(self, threat: Threat, shape: torch.Size) -> dict[str, Any]:
        del threat, shape
        return {"max_iter": self.newton_steps, "eta": self.eta, "verbose": False}

    def classes(self, k: int) -> int:
        return max(k, 3)  # it stops where the probability is 1 / classes, which for two lies on the boundary
