"""Counting passes and taking the time."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

Clock = Callable[[], float]


class Counter(nn.Module):
    """Counts the samples that pass, forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def timed(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds by the clock."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began
