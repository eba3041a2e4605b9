"""Penalties on how fast a model's output changes with its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..attacks.errors import UnsupportedError


class Penalty(Protocol):
    """What is added to the mean loss of a batch.

    ``x (b, ...)`` requires a gradient; ``logits (b, k)`` and the per-batch mean ``loss`` depend on it.
    """

    def __call__(self, x: Tensor, logits: Tensor, loss: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class InputGradient:
    """``weight`` times the mean squared l2 norm of each sample's loss gradient (arXiv 1711.09404).

    Args:
        weight: >= 0, per squared input unit.
    """

    weight: float

    def __post_init__(self) -> None:
        _check("input_gradient", self.weight)

    def __call__(self, x: Tensor, logits: Tensor, loss: Tensor, generator: torch.Generator) -> Tensor:
        del logits, generator
        # The mean's gradient for one sample is 1/b of its own.
        (gradient,) = torch.autograd.grad(loss * len(x), x, create_graph=True)
        return self.weight * gradient.flatten(1).pow(2).sum(1).mean()


@dataclass(frozen=True, slots=True)
class Jacobian:
    """``weight / 2`` times the mean squared Frobenius norm of the Jacobian of the logits (arXiv 1908.02729).

    Args:
        weight: >= 0 (lambda in the paper, 0.01 there).
        projections: random directions of the logits by which the norm is estimated (without bias); None: exactly, by
            one pass for each class.
    """

    weight: float
    projections: int | None = 1

    def __post_init__(self) -> None:
        _check("jacobian", self.weight)
        if self.projections is not None and self.projections < 1:
            raise UnsupportedError(f"jacobian projections is {self.projections}: it must be at least 1, or none")

    def __call__(self, x: Tensor, logits: Tensor, loss: Tensor, generator: torch.Generator) -> Tensor:
        del loss
        n, k = logits.shape
        if self.projections is None:
            directions = list(torch.eye(k, device=x.device).unsqueeze(1).expand(k, n, k))
            scale = 1.0
        else:
            drawn = torch.randn(self.projections, n, k, generator=generator).to(x.device)
            directions = list(drawn / drawn.norm(dim=2, keepdim=True))
            scale = k / self.projections
        squares = [self._square(x, logits, direction) for direction in directions]
        return self.weight / 2 * scale * torch.stack(squares).sum(0).mean()

    def _square(self, x: Tensor, logits: Tensor, direction: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad((logits * direction).sum(), x, create_graph=True)
        return gradient.flatten(1).pow(2).sum(1)


def _check(name: str, weight: float) -> None:
    if weight < 0:
        raise UnsupportedError(f"the weight of {name} is {weight}: it must be at least 0")
