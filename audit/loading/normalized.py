"""Mean/std normalisation as the first layer, so that attacks work on images in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """``body((x - mean) / std)`` for ``x`` of shape ``(n, c, h, w)``.

    The constants are no parameters and not part of the state dict, so training and saving see only the body.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)
