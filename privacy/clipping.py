"""How the influence of one record on a step is bounded.

Each rule turns the records' gradient norms into weights such that no record's weighted gradient is longer than
``bound`` (l2, over all parameters): that is the sensitivity to which the noise is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..attacks.errors import UnsupportedError

ClippingName = Literal["flat", "per_layer", "automatic", "adaptive"]

_TINY = 1e-6


@dataclass(slots=True)
class Clipping:
    """One rule and, for adaptive clipping, its present bound.

    - ``flat``: a longer gradient is shortened to ``bound`` (arXiv 1607.00133).
    - ``per_layer``: each of the k layers has ``bound / sqrt(k)`` for itself; layers with small gradients are heard
      (arXiv 1710.06963).
    - ``automatic``: every gradient is scaled to almost ``bound``; no threshold to tune (arXiv 2206.07136).
    - ``adaptive``: flat, with a bound that follows the ``quantile`` of the norms; the count of shorter gradients that
      steers it is a second query, whose noise is part of the budget (arXiv 1905.03871).

    Args:
        groups: for each parameter the number of its layer, from 0.
        expected_batch: expected number of records in a step.
    """

    name: ClippingName
    bound: float
    groups: Sequence[int]
    expected_batch: int
    quantile: float = 0.5
    speed: float = 0.2
    _shorter: float = field(default=0.0, init=False)

    def weights(self, squared_norms: Tensor) -> tuple[list[Tensor], Tensor]:
        """Weights ``(records,)`` for each parameter, and which records were shortened, bool ``(records,)``.

        Args:
            squared_norms: ``(parameters, records)``.
        """
        norms = squared_norms.sum(0).sqrt()
        if self.name == "per_layer":
            return self._by_layer(squared_norms)
        if self.name == "automatic":
            weight = self.bound / (norms + 0.01)
        else:
            weight = (self.bound / (norms + _TINY)).clamp(max=1.0)
        longer = norms > self.bound
        if self.name == "adaptive":
            self._shorter += float((~longer).sum()) - 0.5 * len(norms)
        return [weight] * len(squared_norms), longer

    def _by_layer(self, squared_norms: Tensor) -> tuple[list[Tensor], Tensor]:
        count = max(self.groups) + 1
        index = torch.tensor(list(self.groups), device=squared_norms.device)
        norms = squared_norms.new_zeros(count, squared_norms.shape[1]).index_add_(0, index, squared_norms).sqrt()
        bound = self.bound / math.sqrt(count)
        weights = (bound / (norms + _TINY)).clamp(max=1.0)
        return [weights[group] for group in self.groups], (norms > bound).any(0)

    def gradient_noise(self, noise_multiplier: float) -> float:
        """Noise multiplier of the gradients, given that of the whole step. Adaptive clipping answers a second query
        from the same budget, so the gradients get a little more: ``(z^-2 - (2 s)^-2)^(-1/2)`` with the count's noise
        ``s``."""
        if self.name != "adaptive" or noise_multiplier == 0:
            return noise_multiplier
        return (noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise on the number of shorter gradients: a twentieth of a batch."""
        return self.expected_batch / 20

    def check(self, noise_multiplier: float) -> None:
        """Raises:
        UnsupportedError: when the noise of the count alone would exceed the budget.
        """
        if self.name == "adaptive" and 2 * self.count_noise <= noise_multiplier:
            raise UnsupportedError(
                f"adaptive clipping with batches of {self.expected_batch} cannot have noise multiplier "
                f"{noise_multiplier:.3g}: counting the clipped records would cost more than the whole budget. "
                f"Use a batch_size above {math.ceil(10 * noise_multiplier)} or clipping: flat"
            )

    def adapt(self, noise: Tensor, total: Tensor | None = None) -> None:
        """Moves the bound after a step.

        Args:
            noise: one standard normal number.
            total: the count over all processes, where there are several; this process's own otherwise.
        """
        if self.name != "adaptive":
            return
        counted = self._shorter if total is None else float(total)
        share = (counted + self.count_noise * float(noise)) / self.expected_batch + 0.5
        self.bound *= math.exp(-self.speed * (min(1.0, max(0.0, share)) - self.quantile))
        self._shorter = 0.0

    @property
    def shorter(self) -> float:
        """Short gradients of the present step, each counted as one half more than long ones: one record changes it by
        one half."""
        return self._shorter
