"""Digital processing: contrast, elastic deformation, coarse pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..streams import Streams
from .filters import gaussian_blur, warp


def contrast(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Keeps a share ``c[0]`` of each channel's deviation from its mean."""
    del streams
    mean = x.mean((2, 3), keepdim=True)
    return mean + c[0] * (x - mean)


def elastic_transform(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Moves pixels along a smooth random field, after a small random affine map.

    Approximated in its strength: at the published values the distortion does not grow with severity, so ours are
    a ladder of displacements as shares of the side (see ``severities.OWN``).
    """
    amplitude, length, jitter = c
    h, w = x.shape[2:]
    side = min(h, w)
    field = gaussian_blur(2 * streams.uniform((2, h, w)) - 1, max(length * side, 0.5))
    field = field / field.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-12) * (amplitude * side)
    # An affine map: displacements that grow linearly from the centre.
    slope = 2 * jitter * (2 * streams.uniform((2, 2)) - 1)
    shift = jitter * side * (2 * streams.uniform((2,)) - 1)
    rows = torch.arange(h, device=x.device)[:, None] - (h - 1) / 2
    columns = torch.arange(w, device=x.device)[None, :] - (w - 1) / 2
    affine = slope[:, :, 0, None, None] * rows + slope[:, :, 1, None, None] * columns + 0.5 * shift[:, :, None, None]
    moved = field + affine
    return warp(x, moved[:, 0], moved[:, 1])


def pixelate(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Shrinks to a share ``c[0]`` of the resolution with a box filter, and back by repeating pixels."""
    del streams
    h, w = x.shape[2:]
    rows, columns = max(1, int(h * c[0])), max(1, int(w * c[0]))
    down, across = _box(h, rows, x.device), _box(w, columns, x.device)
    back, outwards = _box(rows, h, x.device), _box(columns, w, x.device)
    return back @ (down @ x @ across.T) @ outwards.T


def _box(size: int, wanted: int, device: torch.device) -> Tensor:
    """``(wanted, size)``: means of the pixels whose centres a box around each new pixel's centre holds."""
    ratio = size / wanted
    centres = (torch.arange(wanted, device=device, dtype=torch.float64) + 0.5) * ratio
    away = (torch.arange(size, device=device) + 0.5 - centres[:, None]) / max(ratio, 1.0)
    inside = ((away > -0.5) & (away <= 0.5)).float()
    return inside / inside.sum(1, keepdim=True)
