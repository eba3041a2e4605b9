"""Small networks and data for the tests of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def ring(n: int = 96) -> tuple[Tensor, Tensor]:
    """Two classes that no line separates, inside 0..1: near the middle and away from it."""
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    return x, ((x - 0.5).norm(dim=1) > 0.35).long()


def network(dropout: float = 0.3) -> nn.Sequential:
    """With everything a resumed training must find again: batch statistics, dropout, weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2)
        ).eval()


def images(n: int = 24, channels: int = 1, side: int = 8) -> Tensor:
    """``(n, channels, side, side)`` in 0..1."""
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))


def state(module: nn.Module) -> Tensor:
    """All parameters and buffers in one vector."""
    return torch.cat([tensor.flatten().double() for tensor in module.state_dict().values()])
