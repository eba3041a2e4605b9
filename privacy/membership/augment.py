"""Versions of a record that training with augmentation would have seen as the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...attacks.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Augmentations:
    """The record itself, then its mirror image, then shifts of both by up to ``shifts`` pixels along an axis.

    Anything but images ``(n, c, h, w)`` has only itself: there is no change of a row or a text that means nothing.

    Args:
        flip: mirror left and right. Not for digits or letters.
        shifts: largest shift, in pixels; the border is repeated.
    """

    flip: bool = True
    shifts: int = 0

    def __post_init__(self) -> None:
        if self.shifts < 0:
            raise UnsupportedError(f"shifts is {self.shifts}: pixels, 0 or more")

    def __call__(self, x: Tensor) -> list[Tensor]:
        """``q`` tensors in the shape of ``x`` ``(n, ...)``, ``x`` itself first."""
        if x.dim() != 4:
            return [x]
        moves = [(0, 0)]
        for by in range(1, self.shifts + 1):
            moves += [(by, 0), (-by, 0), (0, by), (0, -by)]
        plain = [_shifted(x, *move) for move in moves]
        return [*plain, *(view.flip(-1) for view in plain)] if self.flip else plain


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    if not down and not right:
        return x
    reach = max(abs(down), abs(right))
    padded = functional.pad(x, (reach, reach, reach, reach), mode="replicate")
    return torch.roll(padded, (down, right), (2, 3))[:, :, reach:-reach, reach:-reach]
