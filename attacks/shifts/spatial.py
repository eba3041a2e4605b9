"""Rotation, translation and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UnsupportedError
from .grid import Point, product

Padding = Literal["zeros", "border", "reflection"]


@dataclass(frozen=True, slots=True)
class SpatialGrid:
    """https://arxiv.org/abs/1712.02779. All combinations of rotations, translations and scales (bilinear).

    Args:
        rotations: degrees, counter-clockwise.
        translations: shares of width and height; each pair of them is tried.
        scales: magnifications, > 0.
        padding: what lies outside of the image: black, its edge repeated, or its mirror image.
    """

    rotations: tuple[float, ...] = (-30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0)
    translations: tuple[float, ...] = (-0.1, 0.0, 0.1)
    scales: tuple[float, ...] = (0.9, 1.0, 1.1)
    padding: Padding = "zeros"

    names: ClassVar[tuple[str, ...]] = ("rotation", "translation x", "translation y", "scale")

    def __post_init__(self) -> None:
        if not (self.rotations and self.translations and self.scales):
            raise UnsupportedError("a spatial grid needs at least one rotation, one translation and one scale")
        if min(self.scales) <= 0:
            raise UnsupportedError(f"scales must be above 0, not {min(self.scales):g}")

    def points(self, channels: int) -> tuple[Point, ...]:
        """Settings (degrees, x, y, scale)."""
        del channels
        return product((self.rotations, self.translations, self.translations, self.scales), (0.0, 0.0, 0.0, 1.0))

    def apply(self, x: Tensor, points: Tensor) -> Tensor:
        """Images ``(n, c, h, w)``, each changed by its row of ``points`` ``(n, 4)``."""
        h, w = x.shape[2:]
        angle, (right, down, scale) = points[:, 0] * (math.pi / 180), points[:, 1:].unbind(1)
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        # Where each output pixel is read, in the coordinates of affine_grid, which run from -1 to 1 on both axes.
        across, up = -sin * (h / w), sin * (w / h)
        theta = torch.stack(
            [
                torch.stack([cos, across, -2 * (cos * right + across * down)], 1),
                torch.stack([up, cos, -2 * (up * right + cos * down)], 1),
            ],
            dim=1,
        )
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        moved = functional.grid_sample(x, grid, mode="bilinear", padding_mode=self.padding, align_corners=False)
        return moved.clamp(0, 1)

    def describe(self, point: Sequence[float]) -> str:
        """``rotated by 20°, moved 10 % right``."""
        degrees, right, down, scale = point
        parts = [
            f"rotated by {degrees:g}°" if degrees else "",
            f"moved {100 * abs(right):g} % {'right' if right > 0 else 'left'}" if right else "",
            f"moved {100 * abs(down):g} % {'down' if down > 0 else 'up'}" if down else "",
            f"scaled by {scale:g}" if scale != 1 else "",
        ]
        return ", ".join(part for part in parts if part) or "unchanged"
