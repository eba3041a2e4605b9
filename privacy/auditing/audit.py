"""Runs a private trainer on planted canaries and compares what it gives away with what it claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .bounds import Floats, LowerBound, Mask, many_run_bound, one_run_bound
from .canaries import PlantedInputs, plant


class Claim(Protocol):
    """What a training says that it spent."""

    @property
    def epsilon(self) -> float: ...

    @property
    def delta(self) -> float: ...


Trainer = Callable[[nn.Module, PlantedInputs, Tensor], tuple[nn.Module, Claim]]
"""Trains a copy of the module on inputs (by position) and labels; gives it back with its budget."""


@dataclass(frozen=True, slots=True)
class CanaryAudit:
    """What was claimed and what could be shown.

    Attributes:
        epsilon: as claimed, at ``bound.delta``.
        bound: the lower bound.
        scores: ``(m,)`` of the canaries.
        included: bool ``(m,)``.
    """

    epsilon: float
    bound: LowerBound
    scores: Floats
    included: Mask

    @property
    def broken(self) -> bool:
        """Whether the claim is refuted: the bound lies above it."""
        return self.bound.epsilon > self.epsilon


def audit_in_one_run(
    train: Trainer,
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    canaries: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> CanaryAudit:
    """Trains once, with canaries, and bounds epsilon from below (arXiv 2305.08846).

    Args:
        train: for example ``lambda m, x, y: (r := dp_fine_tune(m, x, y, config=config)).module, r.budget``.
        module: the architecture and the weights to start from.
        x: records ``(n, ...)`` as the module takes them, y: labels int64 ``(n,)``.
        canaries: more show a higher epsilon: 1000 all guessed rightly show about 5.
        seed: of the coins; it must not be the trainer's own.
    """
    planted = plant(module, x, y, classes, canaries, seed)
    trained, claim = train(planted.module, planted.inputs, planted.y)
    scores = planted.scores(trained).double().numpy()
    included = planted.included.numpy()
    return CanaryAudit(claim.epsilon, one_run_bound(scores, included, claim.delta, confidence), scores, included)


def audit_in_many_runs(
    train: Callable[[bool, int], float], *, runs: int, delta: float, confidence: float = 0.95
) -> LowerBound:
    """Trains ``runs`` times with a canary and as often without, and bounds epsilon from below (arXiv 2101.04535).

    Args:
        train: called with whether the canary is in and the number of the run; returns the canary's score.
    """
    scores = [np.array([train(present, 2 * run + present) for run in range(runs)]) for present in (True, False)]
    return many_run_bound(scores[0], scores[1], delta, confidence)


@torch.no_grad()
def loss_scores(module: nn.Module, x: Tensor, y: Tensor, batch_size: int = 512) -> Floats:
    """Negative loss ``(m,)`` of canaries that the owner of the model planted: high where they were learned."""
    module.eval()
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    parts = [
        -torch.nn.functional.cross_entropy(module(a.to(device)), b.to(device), reduction="none").cpu()
        for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True)
    ]
    return torch.cat(parts).double().numpy()
