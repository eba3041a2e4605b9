"""Random windows of images and the bumps painted in them: what the moves of Square are made of."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def corners(h: int, w: int, side_h: int, side_w: int, words: Tensor) -> Tensor:
    """Flat pixel index of the first pixel of the window that each of the random ``words`` picks, in their shape."""
    across = w - side_w + 1
    corner = (words >> 1) % ((h - side_h + 1) * across)
    if side_w > 1:  # from the number of a place to its pixel
        corner = torch.add(corner, corner.div(across, rounding_mode="floor"), alpha=side_w - 1)
    return corner


def pixels(corner: Tensor, side_h: int, side_w: int, w: int) -> Tensor:
    """Flat pixel indices ``(..., side_h * side_w)`` of the windows that begin at ``corner`` ``(...)``."""
    return corner[..., None] + _offsets(side_h, side_w, w, corner.device)


def outside(corner: Tensor, other: Tensor, side_h: int, side_w: int, w: int) -> Tensor:
    """Bool ``(..., side_h * side_w)``: which pixels of the windows at ``corner`` the windows at ``other`` leave out."""
    down = corner.div(w, rounding_mode="floor") - other.div(w, rounding_mode="floor")
    right = corner % w - other % w
    return (_beyond(down, side_h)[..., :, None] | _beyond(right, side_w)[..., None, :]).flatten(-2)


def _beyond(shift: Tensor, side: int) -> Tensor:
    """Bool ``(..., side)``: which places of a span moved by ``shift`` lie outside of where it was."""
    place = shift[..., None] + torch.arange(side, device=shift.device)
    return (place < 0) | (place >= side)


@lru_cache(maxsize=256)
def _offsets(side_h: int, side_w: int, w: int, device: torch.device) -> Tensor:
    """``(side_h * side_w,)``: pixels of a window, counted from its corner in an image ``w`` wide."""
    return (torch.arange(side_h, device=device)[:, None] * w + torch.arange(side_w, device=device)).flatten()


def signs(words: Tensor) -> Tensor:
    """int64 -1 or 1 in the shape of ``words``, from their lowest bits."""
    return ((words & 1) << 1) - 1


@lru_cache(maxsize=256)
def bump_pairs(side_h: int, side_w: int, power: int, device: torch.device) -> Tensor:
    """``(2, side_h * side_w)``: the pair side by side, and the pair on top of each other."""
    upright = bump_pair(side_h, side_w, power)
    return torch.stack([bump_pair(side_w, side_h, power).T.flatten(), upright.flatten()]).to(device)


def bump_pair(h: int, w: int, power: int) -> Tensor:
    """``(h, w)``: a positive bump above a negative one, of norm 1 (l2 for power 2, l1 for power 4)."""
    if h > 1:
        halves = [bump(h // 2, w, power), -bump(h - h // 2, w, power)]
        pair = torch.cat([half / half.norm(2 if power == 2 else 1) for half in halves])
    else:
        pair = torch.ones(h, w)
    return pair / pair.norm(2 if power == 2 else 1)


def bump(h: int, w: int, power: int) -> Tensor:
    """``(h, w)``: concentric rectangles, the r-th adding 1 / (r + 1)^power."""
    rows, columns = torch.arange(h) - h // 2, torch.arange(w) - w // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    weights = 1.0 / torch.arange(1, max(h // 2, w // 2) + 2) ** power
    return weights.flip(0).cumsum(0).flip(0)[ring.clamp_max(len(weights) - 1)]
