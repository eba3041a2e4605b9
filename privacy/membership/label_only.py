"""Label-only attack: members sit farther from the decision boundary (arXiv 2007.14321)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...attacks.errors import UnsupportedError
from ...attacks.streams import Streams
from .augment import Augmentations
from .statistics import Floats

Predict = Callable[[Tensor], Tensor]
"""Classes ``(b,)`` of inputs ``(b, ...)``: all that the attacker sees."""


@dataclass(frozen=True, slots=True)
class LabelOnly:
    """Scores a record by how much change its label survives, from predicted labels alone.

    Three parts add up: the share of mirrored and shifted versions that keep the label (images), the share of noisy
    copies that keep it, and the distance to the boundary, the shortest along random directions, found by bisection.
    A record that is misclassified as it stands scores below all others.

    Args:
        directions: random directions along which the boundary is looked for.
        bisections: of each, so that the distance is exact to ``reach / 2 ** bisections``.
        noises: noisy copies, their deviation rising evenly up to ``reach``.
        reach: largest change looked at, per feature (root mean square), in units of the input's bounds.
        augmentations: versions of an image; for anything else there are none.
    """

    directions: int = 10
    bisections: int = 5
    noises: int = 20
    reach: float = 0.5
    augmentations: Augmentations = Augmentations(shifts=2)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.directions < 1 or self.bisections < 1 or self.noises < 1 or not self.reach > 0:
            raise UnsupportedError("directions, bisections and noises must be at least 1, reach above 0")

    def queries(self, image: bool) -> int:
        """Questions per record, at most."""
        views = len(self.augmentations(torch.zeros(1, 1, 8, 8))) if image else 1
        return views + self.noises + self.directions * (self.bisections + 1)

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        y: Tensor,
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        ids: Tensor | None = None,
    ) -> Floats:
        """Membership scores ``(n,)`` of records ``(n, ...)`` with labels ``(n,)``; draws belong to the sample ids."""
        low, high = bounds
        streams = Streams.from_seed(seed, torch.arange(len(x)) if ids is None else ids)
        scale = self.reach * (high - low) if np.isfinite(high - low) else self.reach
        right = torch.stack([predict(view) == y for view in self.augmentations(x)])
        views = right.float().mean(0)
        noisy = torch.zeros(len(x))
        for step in range(self.noises):
            noise = streams.fork(step).normal(x.shape[1:]) * scale * (step + 1) / self.noises
            noisy += (predict((x + noise).clamp(low, high)) == y).float() / self.noises
        distance = torch.full((len(x),), scale)
        for direction in range(self.directions):
            step = streams.fork(1000 + direction).normal(x.shape[1:])
            found = self._crossing(predict, x, y, step, scale, bounds)
            distance = torch.minimum(distance, found)
        score = views + noisy + distance / scale
        return torch.where(right[0], score, score - 3).double().numpy()

    def _crossing(
        self, predict: Predict, x: Tensor, y: Tensor, direction: Tensor, scale: float, bounds: tuple[float, float]
    ) -> Tensor:
        """Size ``(n,)`` at which the label changes along a direction of unit root mean square; ``scale`` if never."""
        rms = direction.flatten(1).square().mean(1).sqrt().clamp_min(1e-12)
        unit = direction / rms.view(-1, *[1] * (x.dim() - 1))

        def kept(size: Tensor) -> Tensor:
            moved = x + unit * size.view(-1, *[1] * (x.dim() - 1))
            return predict(moved.clamp(*bounds)) == y

        inside, outside = torch.zeros(len(x)), torch.full((len(x),), scale)
        never = kept(outside)
        for _ in range(self.bisections):
            middle = (inside + outside) / 2
            same = kept(middle)
            inside, outside = torch.where(same, middle, inside), torch.where(same, outside, middle)
        return torch.where(never, torch.full_like(outside, scale), outside)
