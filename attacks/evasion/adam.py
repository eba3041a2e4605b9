"""Adam for attacks: one step direction for each sample, with samples that may drop out."""

from __future__ import annotations

import torch
from torch import Tensor


class Adam:
    """https://arxiv.org/abs/1412.6980 with the usual constants, for a batch of samples.

    Args:
        like: ``(n, ...)``, shape, dtype and device of the gradients.
    """

    def __init__(self, like: Tensor) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.steps = 0

    def direction(self, gradient: Tensor) -> Tensor:
        """What to subtract, times the learning rate: entries of about one where the gradient keeps its sign."""
        self.steps += 1
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient.square(), 0.001)
        scale = (self.second / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        return self.first / (1 - 0.9**self.steps) / scale

    def select(self, rows: Tensor) -> None:
        """Keeps some samples only."""
        self.first, self.second = self.first[rows], self.second[rows]
