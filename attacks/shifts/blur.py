"""Gaussian blur of several widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..corruptions.filters import convolve
from ..errors import UnsupportedError
from .grid import Point, product

_SHARP = 0.1  # a Gaussian so narrow leaves every pixel as it is


@dataclass(frozen=True, slots=True)
class BlurShift:
    """Gaussian blur, as of a lens out of focus.

    Args:
        sigmas: standard deviations in pixels, >= 0.
    """

    sigmas: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)

    names: ClassVar[tuple[str, ...]] = ("blur",)

    def __post_init__(self) -> None:
        if not self.sigmas or min(self.sigmas) < 0:
            raise UnsupportedError("a blur shift needs at least one sigma, and none below 0")

    def points(self, channels: int) -> tuple[Point, ...]:
        """Settings (sigma,)."""
        del channels
        return product((self.sigmas,), (0.0,))

    def apply(self, x: Tensor, points: Tensor) -> Tensor:
        """Images ``(n, c, h, w)``, each blurred by its row of ``points`` ``(n, 1)``."""
        sigma = points.clamp_min(_SHARP)
        reach = max(1, math.ceil(4 * max(self.sigmas)))
        weights = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device) ** 2) / (2 * sigma**2))
        weights = weights / weights.sum(1, keepdim=True)
        return convolve(x, weights[:, :, None] * weights[:, None, :]).clamp(0, 1)

    def describe(self, point: Sequence[float]) -> str:
        """``blurred by 1.5 pixels``."""
        return f"blurred by {point[0]:g} pixels" if point[0] else "unchanged"
