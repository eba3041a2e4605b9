"""Random numbers for DP-SGD: each step and purpose has a generator of its own, derived from one key.

So a step that is repeated after a crash with the same key draws the same batch and the same noise, no two steps share
any, and a new key gives new ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .gaussian import Gaussian

Purpose = Literal["sampling", "noise", "count", "dropout", "augmentation"]

Noise = Callable[[Tensor, float, int], None]
"""``noise(out, size, step)`` overwrites ``(n,)`` with a step's normal numbers of standard deviation ``size``."""

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

    def noise(self, like: Tensor, *, secure: bool = False) -> Noise:
        """The noise of all steps: on the CPU from a cipher with a key of 256 bits, elsewhere from torch's generator.

        Args:
            like: of the type and on the device of what will be filled.
            secure: each number is half the sum of four, of which no single one can be read off (arXiv 2107.10138).
        """
        device = like.device
        source = Gaussian(self._bytes("noise", 0, 32), _numpy(like)) if device.type == "cpu" else None

        def fills(step: int) -> Iterator[Callable[[Tensor, float], object]]:
            """One after the other, so that no numbers come twice."""
            if source is not None:
                for stream in range(4 * step, 4 * step + 4):
                    yield partial(_fill, source, stream)
                return
            generator = self.generator("noise", step, device)
            if secure:
                torch.randn(1, device=device, generator=generator)  # Gaussians come in pairs: begin with a second one
            while True:
                yield lambda out, size: out.normal_(0, size, generator=generator)

        def noise(out: Tensor, size: float, step: int) -> None:
            following = fills(step)
            if not secure:
                next(following)(out, size)
                return
            next(following)(out, size / 2)
            one = torch.empty_like(out)
            for _ in range(3):
                next(following)(one, size / 2)
                out += one

        return noise

    def seed(self, purpose: Purpose, step: int) -> int:
        """A seed of 63 bits, for what can only be seeded."""
        return int.from_bytes(self._bytes(purpose, step, 8), "little") >> 1

    def _bytes(self, purpose: Purpose, step: int, count: int) -> bytes:
        return hashlib.shake_256(self.key + f"/{purpose}/{step}".encode()).digest(count)


def _numpy(like: Tensor) -> type[np.float32] | type[np.float64]:
    return np.float64 if like.dtype == torch.float64 else np.float32


def _fill(source: Gaussian, stream: int, out: Tensor, size: float) -> None:
    source.fill(out.numpy(), size, stream)
