"""Light and colour: brightness, contrast, gamma, and for colour images saturation and hue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..corruptions.filters import luminance
from ..errors import UnsupportedError
from .grid import Point, product

_TO_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


@dataclass(frozen=True, slots=True)
class ColourShift:
    """All combinations of changes to light and colour, as a camera or a screen would make them.

    Saturation and hue are changed on images with three channels only.

    Args:
        brightness: added to all values.
        contrast: factors on the deviation from the image's mean, >= 0.
        gamma: exponents, > 0; below 1 brightens.
        saturation: factors on the deviation from grey, >= 0.
        hue: degrees by which the colour turns around the grey axis (in the YIQ model, brightness kept).
    """

    brightness: tuple[float, ...] = (-0.1, 0.0, 0.1)
    contrast: tuple[float, ...] = (0.7, 1.0, 1.3)
    gamma: tuple[float, ...] = (0.7, 1.0, 1.4)
    saturation: tuple[float, ...] = (0.5, 1.0, 1.5)
    hue: tuple[float, ...] = (-20.0, 0.0, 20.0)

    names: ClassVar[tuple[str, ...]] = ("brightness", "contrast", "gamma", "saturation", "hue")

    def __post_init__(self) -> None:
        if not all((self.brightness, self.contrast, self.gamma, self.saturation, self.hue)):
            raise UnsupportedError("a colour shift needs at least one value of each kind")
        if min(self.gamma) <= 0 or min(self.contrast) < 0 or min(self.saturation) < 0:
            raise UnsupportedError("gamma must be above 0, contrast and saturation at least 0")

    def points(self, channels: int) -> tuple[Point, ...]:
        """Settings (brightness, contrast, gamma, saturation, hue)."""
        saturation, hue = (self.saturation, self.hue) if channels == 3 else ((1.0,), (0.0,))
        axes = (self.brightness, self.contrast, self.gamma, saturation, hue)
        return product(axes, (0.0, 1.0, 1.0, 1.0, 0.0))

    def apply(self, x: Tensor, points: Tensor) -> Tensor:
        """Images ``(n, c, h, w)``, each changed by its row of ``points`` ``(n, 5)``."""
        brightness, contrast, gamma, saturation, hue = (column.view(-1, 1, 1, 1) for column in points.unbind(1))
        if x.shape[1] == 3:
            x = _turned(x, hue.flatten() * (math.pi / 180))
            grey = luminance(x)
            x = (grey + saturation * (x - grey)).clamp(0, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (mean + contrast * (x - mean) + brightness).clamp(0, 1)
        return x**gamma

    def describe(self, point: Sequence[float]) -> str:
        """``brightness +0.1, gamma 0.7``."""
        brightness, contrast, gamma, saturation, hue = point
        parts = [
            f"brightness {brightness:+g}" if brightness else "",
            f"contrast × {contrast:g}" if contrast != 1 else "",
            f"gamma {gamma:g}" if gamma != 1 else "",
            f"saturation × {saturation:g}" if saturation != 1 else "",
            f"hue {hue:+g}°" if hue else "",
        ]
        return ", ".join(part for part in parts if part) or "unchanged"


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """RGB images ``(n, 3, h, w)`` with hues turned by ``angle`` ``(n,)`` radians."""
    to_yiq = torch.tensor(_TO_YIQ, device=x.device, dtype=x.dtype)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    rows = (zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos)
    turn = torch.stack(rows, 1).view(-1, 3, 3)
    return torch.einsum("nij,njhw->nihw", torch.linalg.inv(to_yiq) @ turn @ to_yiq, x).clamp(0, 1)
