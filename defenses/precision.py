"""Training with passes in half precision (arXiv 1710.03740)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PrecisionName = Literal["float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Runs passes under autocast, and scales losses where gradients would underflow (float16).

    Weights, their updates and the average of weights stay in float32.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self._device, self._dtype = device.type, _DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass.

        Without autocast's cache: a weight that is first cast while no gradient is recorded (the clean pass of TRADES)
        would be taken from it later and get no gradient.
        """
        enabled = self._dtype != torch.float32
        return torch.autocast(self._device, self._dtype, enabled=enabled, cache_enabled=False)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: Optimizer, parameters: list[nn.Parameter], clip_norm: float | None) -> None:
        """Updates the weights, after clipping the gradients to ``clip_norm``; a step whose scaled gradients overflowed
        is left out."""
        if clip_norm is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()


def without_float16(x: Tensor) -> AbstractContextManager[object]:
    """Inside, a surrounding float16 autocast is off: unscaled input gradients would underflow to zero."""
    device = x.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return torch.autocast(device, enabled=False) if half else nullcontext()
