"""Training on mixtures of samples: mixup and CutMix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..attacks.errors import UnsupportedError
from .augmentation import check_images


class Mixture(NamedTuple):
    """Mixed inputs ``(b, ...)``, the row of each sample's partner ``(b,)``, and the share of the first label."""

    x: Tensor
    partner: Tensor
    share: float


class Mixing(Protocol):
    """Mixes the samples of a batch in pairs; both labels count, by their shares."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Mixture: ...


@dataclass(frozen=True, slots=True)
class Mixup:
    """``share * a + (1 - share) * b`` for random pairs (arXiv 1710.09412). For all modalities whose inputs are numbers.

    Args:
        alpha: share is drawn from Beta(alpha, alpha), once a batch; 0 gives no mixing, the paper uses 0.1 to 0.4 for
            accuracy, and up to 32 against wrong labels.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check("mixup", self.alpha)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Mixture:
        share = _beta(self.alpha, generator)
        partner = torch.randperm(len(x), generator=generator).to(x.device)
        return Mixture(share * x + (1 - share) * x[partner], partner, share)


@dataclass(frozen=True, slots=True)
class CutMix:
    """A rectangle of each image is replaced by that of another (arXiv 1905.04899); labels count by area. For images.

    Args:
        alpha: the area kept is drawn from Beta(alpha, alpha), once a batch; 0 gives no mixing, 1 is the paper's.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check("cutmix", self.alpha)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Mixture:
        check_images(x, "cutmix")
        h, w = x.shape[2:]
        side = math.sqrt(1 - _beta(self.alpha, generator))
        partner = torch.randperm(len(x), generator=generator).to(x.device)
        middle_y, middle_x = torch.rand(2, generator=generator).tolist()
        top, bottom = _span(middle_y * h, side * h, h)
        left, right = _span(middle_x * w, side * w, w)
        mixed = x.clone()
        mixed[:, :, top:bottom, left:right] = x[partner, :, top:bottom, left:right]
        return Mixture(mixed, partner, 1 - (bottom - top) * (right - left) / (h * w))


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of several mixings for each batch, each as likely as the others."""

    choices: tuple[Mixing, ...]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Mixture:
        return self.choices[int(torch.randint(len(self.choices), (), generator=generator))](x, generator)


def mixing(mixup: float, cutmix: float) -> Mixing | None:
    """What the two alphas ask for; with both, either at random for each batch; None when both are 0."""
    choices: list[Mixing] = [*([Mixup(mixup)] if mixup else []), *([CutMix(cutmix)] if cutmix else [])]
    return None if not choices else choices[0] if len(choices) == 1 else OneOf(tuple(choices))


def _check(name: str, alpha: float) -> None:
    if alpha < 0:
        raise UnsupportedError(f"{name} alpha is {alpha}: it must be at least 0")


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha); 1 for alpha 0."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha)) if alpha else 1.0


def _span(middle: float, length: float, size: int) -> tuple[int, int]:
    """First and last-but-one pixel of a stretch, cut at the edges."""
    return max(0, round(middle - length / 2)), min(size, round(middle + length / 2))
