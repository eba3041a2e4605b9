"""RandAugment (arXiv 1909.13719): a few random operations at one common strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ...attacks.corruptions.filters import luminance
from ...attacks.errors import UnsupportedError
from ...attacks.shifts.spatial import SpatialGrid
from ..augmentation import Kind, check_images

Operation = Callable[[Tensor, Tensor], Tensor]
"""``(x (n, c, h, w) in 0..1, strength (n,) in -1..1) -> (n, c, h, w)``."""


@dataclass(frozen=True, slots=True)
class RandAugment:
    """Gives each image ``operations`` operations drawn from :data:`OPERATIONS`, each at ``magnitude``, either way.

    Args:
        operations: how many, one after another.
        magnitude: 0 (unchanged, but for autocontrast and equalisation) to 10 (turned by 30 degrees, moved by a third).
    """

    operations: int = 2
    magnitude: float = 9.0

    modalities: ClassVar[frozenset[Kind]] = frozenset({"image"})

    def __post_init__(self) -> None:
        if self.operations < 1 or not 0 <= self.magnitude <= 10:
            raise UnsupportedError("randaugment needs at least one operation and a magnitude in 0..10")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        check_images(x, "randaugment")
        for _ in range(self.operations):
            choice = torch.randint(len(OPERATIONS), (len(x),), generator=generator)
            sign = torch.where(torch.rand(len(x), generator=generator) < 0.5, -1.0, 1.0)
            x = self._applied(x, choice.to(x.device), (sign * self.magnitude / 10).to(x))
        return x

    def _applied(self, x: Tensor, choice: Tensor, strength: Tensor) -> Tensor:
        changed = x.clone()
        for number, operation in enumerate(OPERATIONS.values()):
            rows = (choice == number).nonzero().squeeze(1)
            if len(rows):
                changed[rows] = operation(x[rows], strength[rows]).clamp(0, 1)
        return changed


def _identity(x: Tensor, strength: Tensor) -> Tensor:
    del strength
    return x


def _autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    """Each channel stretched to 0..1."""
    del strength
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x)


def _equalize(x: Tensor, strength: Tensor) -> Tensor:
    """Each channel with a flat histogram over 256 grey levels."""
    del strength
    level = (x * 255).round().long().flatten(2)
    counts = torch.zeros(*level.shape[:2], 256, device=x.device).scatter_add_(2, level, torch.ones_like(level).float())
    below = counts.cumsum(2)
    first = below.gather(2, level.amin(2, keepdim=True))
    span = level.shape[2] - first
    flat = (below.gather(2, level) - first) / span.clamp_min(1)
    return torch.where(span > 0, flat, x.flatten(2)).view_as(x)


def _rotate(x: Tensor, strength: Tensor) -> Tensor:
    return _moved(x, degrees=30 * strength)


def _translate_x(x: Tensor, strength: Tensor) -> Tensor:
    return _moved(x, right=strength / 3)


def _translate_y(x: Tensor, strength: Tensor) -> Tensor:
    return _moved(x, down=strength / 3)


def _moved(x: Tensor, degrees: Tensor | float = 0.0, right: Tensor | float = 0.0, down: Tensor | float = 0.0) -> Tensor:
    one = x.new_ones(len(x))
    return SpatialGrid().apply(x, torch.stack([degrees * one, right * one, down * one, one], dim=1))


def _shear_x(x: Tensor, strength: Tensor) -> Tensor:
    return _sheared(x, strength, 0, 1)


def _shear_y(x: Tensor, strength: Tensor) -> Tensor:
    return _sheared(x, strength, 1, 0)


def _sheared(x: Tensor, strength: Tensor, row: int, column: int) -> Tensor:
    theta = torch.eye(2, 3, device=x.device, dtype=x.dtype).repeat(len(x), 1, 1)
    theta[:, row, column] = 0.3 * strength
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def _brightness(x: Tensor, strength: Tensor) -> Tensor:
    return x * _factor(strength)


def _contrast(x: Tensor, strength: Tensor) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + _factor(strength) * (x - mean)


def _saturation(x: Tensor, strength: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x
    grey = luminance(x)
    return grey + _factor(strength) * (x - grey)


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    kernel = x.new_tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    smooth = functional.conv2d(functional.pad(x, [1] * 4, mode="replicate").flatten(0, 1)[:, None], kernel[None, None])
    smooth = smooth.view_as(x)
    return smooth + _factor(strength) * (x - smooth)


def _solarize(x: Tensor, strength: Tensor) -> Tensor:
    """Values above a threshold are inverted."""
    threshold = (1 - strength.abs()).view(-1, 1, 1, 1)
    return torch.where(x > threshold, 1 - x, x)


def _posterize(x: Tensor, strength: Tensor) -> Tensor:
    """Eight to four bits."""
    levels = 2 ** (8 - (4 * strength.abs()).round()).view(-1, 1, 1, 1)
    return (x * 255 / 256 * levels).floor() / levels * (256 / 255)


def _factor(strength: Tensor) -> Tensor:
    return (1 + 0.9 * strength).view(-1, 1, 1, 1)


OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "translate x": _translate_x,
    "translate y": _translate_y,
    "shear x": _shear_x,
    "shear y": _shear_y,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "sharpness": _sharpness,
    "solarize": _solarize,
    "posterize": _posterize,
}
