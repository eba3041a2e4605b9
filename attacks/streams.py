"""Random numbers that belong to a sample, not to its place in a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al., 2014) on int64 tensors, whose products wrap modulo 2^64."""
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


class Streams:
    """One counter-based random stream per sample.

    What a sample draws depends on its own key and on how often *it* has drawn, so an attack's result
    does not depend on batch size, order, or on which other samples are still being attacked.

    Args:
        keys: int64 ``(n,)``, one key a sample.
        counter: int64 ``(n,)``, how many draws each sample has made.
    """

    __slots__ = ("counter", "keys")

    def __init__(self, keys: Tensor, counter: Tensor | None = None) -> None:
        self.keys = keys
        self.counter = torch.zeros_like(keys) if counter is None else counter

    @classmethod
    def from_seed(cls, seed: int, ids: Tensor) -> Streams:
        """Streams for the samples numbered ``ids`` (int64 ``(n,)``) under ``seed``."""
        base = _mix(torch.tensor(seed, dtype=torch.int64) + _GOLDEN).to(ids.device)
        return cls(_mix(base ^ _mix(ids.to(torch.int64) + _GOLDEN)))

    @classmethod
    def of(cls, source: torch.Generator | Streams | None, n: int, device: torch.device) -> Streams:
        """``source`` itself when it is Streams; otherwise n streams keyed from a generator (None: seed 0)."""
        if isinstance(source, Streams):
            return source
        if source is None:
            return cls.from_seed(0, torch.arange(n, device=device))
        keys = torch.randint(-(2**63), 2**63 - 1, (n,), generator=source, device=source.device)
        return cls(keys.to(device))

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, index: Tensor) -> Streams:
        """The streams of some samples (int64 indices or a bool mask), continuing where they are.

        The selection has a copy of the counters: advance one or the other, not both.
        """
        return Streams(self.keys[index], self.counter[index])

    def to(self, device: torch.device) -> Streams:
        """A copy on another device; it draws the same numbers there."""
        return Streams(self.keys.to(device), self.counter.to(device))

    def fork(self, label: int) -> Streams:
        """Independent streams for another purpose (a restart, a second attack), the counters at zero."""
        return Streams(_mix(self.keys ^ _mix(torch.full_like(self.keys, label) + _GOLDEN)))

    def bits(self, shape: Sequence[int]) -> Tensor:
        """int64 ``(n, *shape)``, 64 random bits each."""
        count = math.prod(shape)
        start = _mix(self.keys + self.counter * _GOLDEN)
        steps = torch.arange(1, count + 1, device=self.keys.device, dtype=torch.int64) * _GOLDEN
        self.counter = self.counter + 1
        return _mix(start[:, None] + steps[None, :]).view(len(self), *shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """float32 ``(n, *shape)`` in [0, 1)."""
        return _shift_right(self.bits(shape), 40).to(torch.float32) * 2.0**-24

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """int64 ``(n, *shape)`` in 0..high-1."""
        return _shift_right(self.bits(shape), 1) % high

    def signs(self, shape: Sequence[int]) -> Tensor:
        """float32 ``(n, *shape)`` of -1 and 1."""
        return (self.bits(shape) & 1).to(torch.float32) * 2 - 1

    def normal(self, shape: Sequence[int]) -> Tensor:
        """float32 ``(n, *shape)``, standard normal (Box-Muller)."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(shape)))
        return radius * torch.cos(2 * math.pi * self.uniform(shape))

    def laplace(self, shape: Sequence[int]) -> Tensor:
        """float32 ``(n, *shape)``, standard Laplace."""
        return -torch.log1p(-self.uniform(shape)) * self.signs(shape)
