"""Preprocessing that is to wash perturbations out: JPEG, fewer bits, median and total-variation filters.

Each is a module ``(n, c, h, w) -> (n, c, h, w)`` for images in 0..1 that computes the real thing and differentiates
an approximation of it, so that gradient attacks on the whole are the adaptive ones (BPDA, arXiv 1802.00420).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attacks.corruptions.jpeg import jpeg_compression
from ..attacks.errors import UnsupportedError
from ..attacks.evasion.bpda import BPDA
from ..attacks.streams import Streams

StepName = Literal["jpeg", "bit_depth", "median", "total_variation"]


class Step(Protocol):
    """A filter of images ``(n, c, h, w)`` in 0..1."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Jpeg:
    """https://arxiv.org/abs/1608.00853. Compression and decompression at ``quality`` 1..100."""

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UnsupportedError(f"the JPEG quality is {self.quality}: it lies in 1..100")

    def __call__(self, x: Tensor) -> Tensor:
        nothing = Streams(torch.zeros(len(x), dtype=torch.int64, device=x.device))
        return jpeg_compression(x.clamp(0, 1), (float(self.quality),), nothing).to(x.dtype)


@dataclass(frozen=True, slots=True)
class BitDepth:
    """https://arxiv.org/abs/1704.01155. Rounds to ``2 ** bits`` levels, 1..8 bits."""

    bits: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise UnsupportedError(f"bits is {self.bits}: it lies in 1..8")

    def __call__(self, x: Tensor) -> Tensor:
        steps = 2**self.bits - 1
        return (x.clamp(0, 1) * steps).round() / steps


@dataclass(frozen=True, slots=True)
class Median:
    """https://arxiv.org/abs/1704.01155. The median of each ``size`` x ``size`` window, channel by channel.

    Its own gradient, which goes to the pixel that is the median, is what an attack follows. Even windows take the
    lower of the two middle values; the border is mirrored.
    """

    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 2:
            raise UnsupportedError(f"the median's window is {self.size}: it must be at least 2")

    def __call__(self, x: Tensor) -> Tensor:
        before, after = (self.size - 1) // 2, self.size // 2
        padded = functional.pad(x, (before, after, before, after), mode="reflect")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(4).median(4).values


@dataclass(frozen=True, slots=True)
class TotalVariation:
    """https://arxiv.org/abs/1711.00117. The image that minimises squared distance / 2 + ``weight`` * total variation.

    The isotropic total variation of each channel, by ``steps`` of the projected dual ascent of Chambolle (2004). All
    pixels count; the paper also drops pixels at random, which is left out so that answers repeat.
    """

    weight: float = 0.1
    steps: int = 30

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.steps < 1:
            raise UnsupportedError(f"weight is {self.weight} and steps {self.steps}: both must be above 0")

    def __call__(self, x: Tensor) -> Tensor:
        rows, columns = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.steps):
            down, right = _slopes(_divergence(rows, columns) + x / self.weight)
            length = 1 + 0.25 * (down.square() + right.square() + 1e-12).sqrt()
            rows, columns = (rows + 0.25 * down) / length, (columns + 0.25 * right) / length
        return x + self.weight * _divergence(rows, columns)


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the pixel below and to the right; 0 at the far borders."""
    return functional.pad(x.diff(dim=2), (0, 0, 0, 1)), functional.pad(x.diff(dim=3), (0, 1))


def _divergence(rows: Tensor, columns: Tensor) -> Tensor:
    """Minus the transpose of :func:`_slopes`."""
    down, right = rows[:, :, :-1], columns[:, :, :, :-1]
    vertical = functional.pad(down, (0, 0, 0, 1)) - functional.pad(down, (0, 0, 1, 0))
    return vertical + functional.pad(right, (0, 1)) - functional.pad(right, (1, 0))


class Preprocessed(nn.Module):
    """A classifier behind filters, attacked through them.

    JPEG and bit depth are differentiated as if they did nothing; median and total variation by their own gradient,
    which for the latter costs more but breaks more.

    Args:
        body: maps images ``(n, c, h, w)`` within ``bounds`` to logits.
        steps: filters in the order in which they are applied.
        bounds: lowest and highest value of an image; filters see it scaled to 0..1.
    """

    def __init__(self, body: nn.Module, steps: tuple[Step, ...], bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.body = body
        self.bounds = bounds
        self._steps = [BPDA(step) if isinstance(step, Jpeg | BitDepth) else step for step in steps]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)``.

        Raises:
            UnsupportedError: when the inputs are no images.
        """
        return self.body(self.filtered(x))

    def filtered(self, x: Tensor) -> Tensor:
        """What the body sees: ``(n, c, h, w)`` within the bounds."""
        if x.dim() != 4:
            raise UnsupportedError(f"inputs have shape {tuple(x.shape)}: the filters need images (n, c, h, w)")
        low, high = self.bounds
        image = (x - low) / (high - low)
        for step in self._steps:
            image = step(image)
        return low + (high - low) * image
