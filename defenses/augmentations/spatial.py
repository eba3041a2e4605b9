"""Random rotations, translations and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...attacks.errors import UnsupportedError
from ...attacks.shifts.spatial import SpatialGrid
from ..augmentation import Kind, check_images, signed


@dataclass(frozen=True, slots=True)
class RandomSpatial:
    """Turns, moves and scales each image (bilinear, black outside).

    Wrong for digits and letters beyond some 20 degrees.

    Args:
        rotation: most degrees, either way.
        translation: largest share of width and height, either way.
        scale: largest relative change of size, below 1: 0.2 gives magnifications from 0.8 to 1.2.
    """

    rotation: float = 0.0
    translation: float = 0.0
    scale: float = 0.0

    modalities: ClassVar[frozenset[Kind]] = frozenset({"image"})

    def __post_init__(self) -> None:
        if min(self.rotation, self.translation, self.scale) < 0 or self.scale >= 1:
            raise UnsupportedError("rotation, translation and scale must be at least 0, and scale below 1")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        check_images(x, "rotation, translation, scale")
        n = len(x)
        parts = [signed(n, most, generator) for most in (self.rotation, self.translation, self.translation, self.scale)]
        points = torch.stack([*parts[:3], 1 + parts[3]], dim=1)
        return SpatialGrid().apply(x, points.to(x))
