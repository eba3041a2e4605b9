"""Fractal noise by the diamond-square algorithm (Fournier, Fussell & Carpenter, 1982), on a torus."""

from __future__ import annotations

import torch
from torch import Tensor

from ..streams import Streams


def plasma(streams: Streams, h: int, w: int, decay: float) -> Tensor:
    """``(n, h, w)`` in 0..1, both ends reached on the full torus; ``decay`` divides the amplitude at each halving."""
    side = 1 << max(1, (max(h, w) - 1).bit_length())
    field = torch.zeros(len(streams), side, side, device=streams.keys.device)
    step, amplitude = side, 1.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        centres = _jittered(_four(corners, torch.roll(corners, (-1, -1), (1, 2)), -1), amplitude, streams)
        field[:, half::step, half::step] = centres
        left = corners + torch.roll(corners, -1, 2)
        field[:, ::step, half::step] = _jittered((left + centres + torch.roll(centres, 1, 1)) / 4, amplitude, streams)
        above = corners + torch.roll(corners, -1, 1)
        field[:, half::step, ::step] = _jittered((above + centres + torch.roll(centres, 1, 2)) / 4, amplitude, streams)
        step, amplitude = half, amplitude / decay
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return ((field - low) / (high - low).clamp_min(1e-12))[:, :h, :w]


def _four(corners: Tensor, opposite: Tensor, shift: int) -> Tensor:
    """Means of the four corners of each square."""
    return (corners + opposite + torch.roll(corners, shift, 1) + torch.roll(corners, shift, 2)) / 4


def _jittered(mean: Tensor, amplitude: float, streams: Streams) -> Tensor:
    return mean + amplitude * (2 * streams.uniform(mean.shape[1:]) - 1)
