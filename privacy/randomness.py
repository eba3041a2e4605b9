"""Random numbers for DP-SGD: each step and purpose has a generator of its own, derived from one key.

So a step that is repeated after a crash with the same key draws the same batch and the same noise, no two steps share
any, and a new key gives new ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .gaussian import fill_normal

Purpose = Literal["sampling", "noise", "count", "dropout", "augmentation"]

Noise = Callable[[Tensor, float], None]
"""``noise(out, size)`` overwrites ``(n,)`` with normal numbers of standard deviation ``size``."""

_STATE_OFFSET = 24
_STATE_WORDS = 624


@dataclass(frozen=True, slots=True)
class Streams:
    """Generators by purpose and step.

    Args:
        key: 32 bytes that decide everything.
    """

    key: bytes

    @classmethod
    def of(cls, seed: int | None) -> Streams:
        """From a known seed; with None from the operating system's entropy."""
        return cls(os.urandom(32) if seed is None else hashlib.sha256(f"auditorch dp-sgd {seed}".encode()).digest())

    def generator(self, purpose: Purpose, step: int, device: torch.device | str = "cpu") -> torch.Generator:
        """The generator of one purpose at one step.

        On the CPU its whole state follows from the key. A seed would not do: torch keeps 32 bits of it there, few
        enough to try them all and subtract the noise. On other devices it is seeded with 63 bits.
        """
        device = torch.device(device)
        if device.type != "cpu":
            return torch.Generator(device).manual_seed(self.seed(purpose, step))
        generator = torch.Generator().manual_seed(0)
        state = generator.get_state().numpy()
        words = state[_STATE_OFFSET : _STATE_OFFSET + 8 * _STATE_WORDS].view(np.uint64)
        words[:] = np.frombuffer(self._bytes(purpose, step, 4 * _STATE_WORDS), dtype="<u4")
        return generator.set_state(torch.from_numpy(state))

    def noise(self, step: int, device: torch.device, *, secure: bool = False) -> Noise:
        """The noise of one step: on the CPU from a cipher whose key is of 256 bits, elsewhere from torch's generator.

        Args:
            secure: each number is half the sum of four, of which no single one can be read off (arXiv 2107.10138).
        """
        if device.type == "cpu":
            secrets = self._bytes("noise", step, 4 * 32)
            keys = iter([secrets[i : i + 32] for i in range(0, len(secrets), 32)])

            def fill(out: Tensor, size: float) -> None:
                fill_normal(out.numpy(), size, next(keys))
        else:
            generator = self.generator("noise", step, device)
            torch.randn(1, device=device, generator=generator)  # Gaussians come in pairs: begin with a second one

            def fill(out: Tensor, size: float) -> None:
                out.normal_(0, size, generator=generator)

        def four(out: Tensor, size: float) -> None:
            fill(out, size / 2)
            one = torch.empty_like(out)
            for _ in range(3):
                fill(one, size / 2)
                out += one

        return four if secure else fill

    def seed(self, purpose: Purpose, step: int) -> int:
        """A seed of 63 bits, for what can only be seeded."""
        return int.from_bytes(self._bytes(purpose, step, 8), "little") >> 1

    def _bytes(self, purpose: Purpose, step: int, count: int) -> bytes:
        return hashlib.shake_256(self.key + f"/{purpose}/{step}".encode()).digest(count)
