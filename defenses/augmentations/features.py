"""Random changes of single features: for tables, and for images too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...attacks.errors import UnsupportedError
from ..augmentation import Kind


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """Adds independent Gaussian noise to every feature.

    Args:
        std: in input units; the result is clamped to ``bounds`` when these are given.
    """

    std: float = 0.1
    bounds: tuple[float, float] | None = None

    modalities: ClassVar[frozenset[Kind]] = frozenset({"image", "tabular"})

    def __post_init__(self) -> None:
        if self.std < 0:
            raise UnsupportedError(f"noise is {self.std}: it is a standard deviation, at least 0")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        noisy = x + self.std * torch.randn(x.shape, generator=generator).to(x)
        return noisy if self.bounds is None else noisy.clamp(*self.bounds)


@dataclass(frozen=True, slots=True)
class Swap:
    """Replaces each feature, with probability ``share``, by that of another row of the batch (arXiv 2106.15147).

    Every value stays one that the feature really takes, so it suits tables with categories; not for images.
    """

    share: float = 0.1

    modalities: ClassVar[frozenset[Kind]] = frozenset({"tabular"})

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UnsupportedError(f"swap is {self.share}: it is a share of the features, 0 to 1")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        other = torch.randperm(len(x), generator=generator).to(x.device)
        swapped = torch.rand(x.shape, generator=generator).to(x.device) < self.share
        return torch.where(swapped, x[other], x)
