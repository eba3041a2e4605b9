"""Random changes of training inputs, drawn afresh for each sample of each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ..attacks.errors import UnsupportedError

Kind = Literal["image", "text", "tabular"]


class Augment(Protocol):
    """Changes a batch ``(b, ...)``; random numbers come from ``generator`` (on the CPU), one set for each sample.

    A frozen dataclass declares in ``modalities`` what it is right for.
    """

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Chain:
    """Several changes, one after another."""

    steps: tuple[Augment, ...]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for step in self.steps:
            x = step(x, generator)
        return x


@dataclass(frozen=True, slots=True)
class RandomFlip:
    """Mirrors each image left to right with probability ``p``.

    Right for pictures of things; wrong for text, digits and whatever else has a reading direction.
    """

    p: float = 0.5

    modalities: ClassVar[frozenset[Kind]] = frozenset({"image"})

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UnsupportedError(f"flip is {self.p}: it is a probability, 0 to 1")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        check_images(x, "flip")
        mirrored = torch.rand(len(x), generator=generator).to(x.device) < self.p
        return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def check_images(x: Tensor, name: str) -> None:
    """Refuses what is no batch of images ``(b, c, h, w)``.

    Raises:
        UnsupportedError: saying what fits.
    """
    if x.dim() != 4:
        raise UnsupportedError(
            f"the augmentation {name} changes images (b, c, h, w); these inputs have shape {tuple(x.shape)}. "
            "For tables use noise or swap; for text none of them fits"
        )


def signed(n: int, most: float, generator: torch.Generator) -> Tensor:
    """``(n,)`` uniform in ``-most..most``, on the CPU."""
    return most * (2 * torch.rand(n, generator=generator) - 1)
