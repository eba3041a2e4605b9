"""Random light and colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...attacks.errors import UnsupportedError
from ...attacks.shifts.colour import ColourShift
from ..augmentation import Kind, check_images, signed


@dataclass(frozen=True, slots=True)
class RandomColour:
    """Changes brightness, contrast and, of images with three channels, saturation and hue.

    Args:
        strength: in 0..1. At 0.2, brightness moves by up to 0.2, contrast and saturation by up to 20 %, hue by up to
            18 degrees.
    """

    strength: float = 0.2

    modalities: ClassVar[frozenset[Kind]] = frozenset({"image"})

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UnsupportedError(f"colour is {self.strength}: it is a strength, 0 to 1")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        check_images(x, "colour")
        brightness, contrast, saturation, hue = (signed(len(x), self.strength, generator) for _ in range(4))
        points = torch.stack([brightness, 1 + contrast, torch.ones(len(x)), 1 + saturation, 90 * hue], dim=1)
        return ColourShift().apply(x, points.to(x))
