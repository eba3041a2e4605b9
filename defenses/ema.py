"""An exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..attacks.errors import UnsupportedError


class MovingAverage:
    """Averages parameters in place of the last iterate (Polyak & Juditsky, 1992).

    Early on the decay is held down to ``(1 + t) / (10 + t)`` at update t, so that the start is forgotten.

    Attributes:
        means: the averages, one per parameter.
        updates: how often a value was taken in.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise UnsupportedError(f"ema is {decay}: the decay must be at least 0 and below 1")
        self._parameters = list(parameters)
        self._decay = decay
        self.updates = 0
        self.means = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the parameters' present values into the average."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for mean, parameter in zip(self.means, self._parameters, strict=True):
            mean.lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters have their average values."""
        present = [parameter.detach().clone() for parameter in self._parameters]
        self._write(self.means)
        try:
            yield
        finally:
            self._write(present)

    def state(self) -> dict[str, torch.Tensor]:
        """The averages and their number of updates, for :meth:`restore`."""
        return {"updates": torch.tensor(self.updates)} | {str(i): mean for i, mean in enumerate(self.means)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from what :meth:`state` gave."""
        self.updates = int(state["updates"])
        self.means = [state[str(i)].to(mean) for i, mean in enumerate(self.means)]

    @torch.no_grad()
    def _write(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
