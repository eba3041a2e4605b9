"""A patch that makes the model err wherever it is put."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..attack import Model, Randomness
from ..engine import check_inputs
from ..errors import UnsupportedError
from ..models import attacking
from ..streams import Streams
from ..threat import Threat
from .training import ascent, batches, seeded

Shape = Literal["square", "circle"]


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch and the ways in which it may be placed.

    Attributes:
        pattern: ``(c, p, p)``, within the bounds of the inputs.
        mask: ``(1, p, p)``, 1 where the pattern covers the image.
        size: side as a share of the image's shorter side, at scale 1.
        rotation: largest angle in degrees, either way.
        scales: smallest and largest magnification.
    """

    pattern: Tensor
    mask: Tensor
    size: float
    rotation: float
    scales: tuple[float, float]


@dataclass(frozen=True, slots=True)
class AdversarialPatch:
    """https://arxiv.org/abs/1712.09665. One patch for all images, trained over random places, angles and scales.

    Args:
        size: side as a share of the image's shorter side, in 0..1.
        steps: gradient steps, >= 1.
        batch_size: images per step, each with the patch at its own place.
        step_size: first step, as a share of the range of the inputs; later steps fall linearly to nothing.
        rotation: largest angle in degrees, either way.
        scales: smallest and largest magnification.
        shape: square or circle.
        clip: most loss (nats) that an image can bring in.
    """

    size: float = 0.3
    steps: int = 200
    batch_size: int = 64
    step_size: float = 0.1
    rotation: float = 20.0
    scales: tuple[float, float] = (0.8, 1.2)
    shape: Shape = "circle"
    clip: float = 9.0

    def __post_init__(self) -> None:
        low, high = self.scales
        if not (self.size > 0 and 0 < low <= high and self.size * high <= 1):
            raise UnsupportedError(f"a patch of size {self.size:g} at scale {high:g} must be above 0 and fit the image")
        if self.steps < 1 or self.batch_size < 1 or self.step_size <= 0 or self.clip <= 0:
            raise UnsupportedError("a patch needs steps, batch_size, step_size and clip above 0")

    def fit(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        generator: torch.Generator | None = None,
    ) -> Patch:
        """A patch that raises the loss on ``y``, or, targeted, makes the model choose ``y``.

        Args:
            x: float images ``(n, c, h, w)`` within the bounds, where the model is.
            y: int64 ``(n,)``, labels; targeted: the classes to reach.
            generator: on the CPU; None: seed 0.

        Raises:
            UnsupportedError: for inputs that are no images in the bounds, or when the model gives no gradient.
        """
        if x.dim() != 4:
            raise UnsupportedError(f"inputs have shape {tuple(x.shape)}: expected images (n, c, h, w)")
        check_inputs(x, y, Threat("linf", bounds[1] - bounds[0], targeted, bounds))
        generator = seeded(generator)
        patch = self.blank(x, bounds)
        pattern = patch.pattern
        with attacking(model):
            for step, rows in enumerate(batches(len(x), self.batch_size, self.steps, generator)):
                leaf = pattern.detach().requires_grad_()
                rows = rows.to(x.device)
                streams = Streams.of(generator, len(rows), x.device)
                with torch.enable_grad():
                    covered = _placed(leaf, patch, x[rows], streams)
                    gradient = ascent(model, covered, y[rows], leaf, self.clip, targeted=targeted)
                length = self.step_size * (1 - step / self.steps) * (bounds[1] - bounds[0])
                pattern = (pattern + length * gradient.sign()).clamp(*bounds)
        return self._with(pattern, patch.mask)

    def blank(self, x: Tensor, bounds: tuple[float, float] = (0.0, 1.0)) -> Patch:
        """A grey patch for images like ``x`` ``(n, c, h, w)``, where ``fit`` begins."""
        p = max(2, round(self.size * self.scales[1] * min(x.shape[2:])))
        steps = (torch.arange(p, device=x.device, dtype=x.dtype) + 0.5) * 2 / p - 1
        inside = torch.hypot(steps[:, None], steps[None, :]) <= 1
        mask = inside.to(x.dtype) if self.shape == "circle" else torch.ones_like(inside, dtype=x.dtype)
        return self._with(torch.full((x.shape[1], p, p), sum(bounds) / 2, device=x.device, dtype=x.dtype), mask[None])

    def _with(self, pattern: Tensor, mask: Tensor) -> Patch:
        return Patch(pattern, mask, self.size, self.rotation, self.scales)


@torch.no_grad()
def apply(patch: Patch, x: Tensor, generator: Randomness = None) -> Tensor:
    """Images ``(n, c, h, w)`` with the patch at a random place, angle and scale each, wholly inside the image.

    A centre is drawn so that the patch, unrotated, stays inside; corners of a rotated square may leave.
    """
    return _placed(patch.pattern, patch, x, Streams.of(generator, len(x), x.device))


def _placed(pattern: Tensor, patch: Patch, x: Tensor, streams: Streams) -> Tensor:
    """``x`` with ``pattern`` in place of the patch's own; differentiable in it."""
    n, channels, h, w = x.shape
    draw = streams.uniform((4,)).to(x.dtype)
    low, high = patch.scales
    half = 0.5 * patch.size * min(h, w) * (low + (high - low) * draw[:, 0])
    angle = (2 * draw[:, 1] - 1) * (patch.rotation * math.pi / 180)
    row = half + draw[:, 2] * (h - 2 * half)
    column = half + draw[:, 3] * (w - 2 * half)
    down = torch.arange(h, device=x.device, dtype=x.dtype) + 0.5 - row[:, None]
    right = torch.arange(w, device=x.device, dtype=x.dtype) + 0.5 - column[:, None]
    down, right = down[:, :, None] / half[:, None, None], right[:, None, :] / half[:, None, None]
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    grid = torch.stack([cos * right - sin * down, sin * right + cos * down], dim=-1)
    both = torch.cat([pattern * patch.mask, patch.mask]).expand(n, -1, -1, -1)
    drawn = functional.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return drawn[:, :channels] + (1 - drawn[:, channels:]) * x
