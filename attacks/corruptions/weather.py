"""Weather: snow, frost, fog, and the light of the day."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..streams import Streams
from .filters import convolve, luminance, magnify, motion_kernels
from .plasma import plasma

_FROST_TINT = (0.88, 0.96, 1.0)


def snow(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Whitens the image and adds falling flakes: thresholded normal noise, enlarged and streaked.

    Approximated in the streaks only: our motion blur stands in for that of ImageMagick.
    """
    loc, spread, size, threshold, radius, sigma, kept = c
    flakes = magnify(loc + spread * streams.normal((1, *x.shape[2:])), size)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angles = math.radians(45) + streams.uniform((1,)).squeeze(1) * (math.pi / 2)
    flakes = convolve(flakes, motion_kernels(angles, radius, sigma)).clamp(0, 1)
    whitened = kept * x + (1 - kept) * torch.maximum(x, 1.5 * luminance(x) + 0.5)
    return whitened + flakes + flakes.flip(2, 3)


def frost(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Mixes in crystals of ice: ``c[0]`` of the image plus ``c[1]`` of the ice.

    Approximated: the original overlays photographs of frost, ours draws veins (ridges of fractal noise) over
    a cloudy ground. Shapes and colours of real frost are not reproduced.
    """
    h, w = x.shape[2:]
    veins = 1 - (2 * plasma(streams, h, w, 1.6) - 1).abs()
    ground = plasma(streams, h, w, 2.5)
    ice = (0.25 + 0.45 * ground + 0.5 * veins**4).clamp(0, 1).unsqueeze(1)
    if x.shape[1] == 3:
        ice = ice * torch.tensor(_FROST_TINT, device=x.device).view(1, 3, 1, 1)
    return c[0] * x + c[1] * ice


def fog(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Adds a fractal cloud of thickness ``c[0]`` and scales back to the image's own maximum."""
    h, w = x.shape[2:]
    cloud = plasma(streams, h, w, c[1] ** 2).unsqueeze(1)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + c[0] * cloud) * brightest / (brightest + c[0])


def brightness(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Adds ``c[0]`` to the value of the HSV model (the largest channel), hue and saturation kept."""
    del streams
    value = x.amax(1, keepdim=True)
    lifted = (value + c[0]).clamp_max(1)
    return torch.where(value > 0, x * (lifted / value.clamp_min(1e-12)), lifted)
