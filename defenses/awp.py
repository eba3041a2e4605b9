"""Adversarial weight perturbation: flatten the loss around the weights too (arXiv 2004.05884)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..attacks.attack import Model
from ..attacks.errors import UnsupportedError

_SMALLEST = 1e-20


@dataclass(frozen=True, slots=True)
class WeightPerturbation:
    """Moves each weight matrix and kernel by ``gamma`` times its own length along its gradient, that is uphill, and
    lets the training step take its gradient there. Biases and norm layers stay.

    Costs one more pass forwards and backwards per step.

    Args:
        gamma: length of each perturbation relative to its weight; 0.005 to 0.01 in the paper.
        start: share of the training after which it begins, in 0..1.
    """

    gamma: float = 0.005
    start: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1 or not 0 <= self.start <= 1:
            raise UnsupportedError(f"AWP gamma is {self.gamma} and start {self.start}: gamma lies in 0..1, start too")

    def perturbed(self, module: nn.Module, loss: Callable[[Model], Tensor]) -> Model:
        """The module with perturbed weights: gradients go to the module's own weights, which stay as they are."""
        return Shifted(module, self.perturbations(module, loss))

    def perturbations(self, module: nn.Module, loss: Callable[[Model], Tensor]) -> dict[str, Tensor]:
        """What is added to each trained weight, by name."""
        weights = {n: p for n, p in module.named_parameters() if p.requires_grad and p.dim() > 1}
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}  # BatchNorm counts a batch once
        gradients = torch.autograd.grad(loss(Shifted(module, {}, buffers)), list(weights.values()), allow_unused=True)
        moves: dict[str, Tensor] = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                length = weight.detach().norm() / (gradient.norm() + _SMALLEST)
                moves[name] = (self.gamma * length * gradient).nan_to_num(0.0, 0.0, 0.0)
        return moves


class Shifted:
    """A module called with something added to its weights, and with other buffers."""

    def __init__(
        self, module: nn.Module, moves: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None
    ) -> None:
        own = dict(module.named_parameters())
        self._module = module
        self._values = {name: own[name] + move for name, move in moves.items()} | dict(buffers or {})

    def __call__(self, x: Tensor) -> Tensor:
        return functional_call(self._module, self._values, (x,))
