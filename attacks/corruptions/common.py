"""The 15 corruptions by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..attack import Randomness
from ..errors import UnsupportedError
from ..streams import Streams
from .blurs import defocus_blur, glass_blur, motion_blur, zoom_blur
from .digital import contrast, elastic_transform, pixelate
from .jpeg import jpeg_compression
from .noise import gaussian_noise, impulse_noise, shot_noise
from .severities import parameters
from .weather import brightness, fog, frost, snow

Corruption = Callable[[Tensor, tuple[float, ...], Streams], Tensor]

GROUPS: dict[str, dict[str, Corruption]] = {
    "noise": {"gaussian_noise": gaussian_noise, "shot_noise": shot_noise, "impulse_noise": impulse_noise},
    "blur": {
        "defocus_blur": defocus_blur,
        "glass_blur": glass_blur,
        "motion_blur": motion_blur,
        "zoom_blur": zoom_blur,
    },
    "weather": {"snow": snow, "frost": frost, "fog": fog, "brightness": brightness},
    "digital": {
        "contrast": contrast,
        "elastic_transform": elastic_transform,
        "pixelate": pixelate,
        "jpeg_compression": jpeg_compression,
    },
}
"""The functions in the paper's four groups and order."""

CORRUPTIONS: dict[str, Corruption] = {name: function for group in GROUPS.values() for name, function in group.items()}
SEVERITIES = (1, 2, 3, 4, 5)

APPROXIMATED: dict[str, str] = {
    "glass_blur": "random displacements stand in for swaps of neighbouring pixels, in steps of our own",
    "motion_blur": "our own streak kernel stands in for that of ImageMagick",
    "snow": "its streaks are those of our motion blur",
    "frost": "drawn by fractal noise where the original overlays photographs, two severities raised",
    "elastic_transform": "with severities of our own, because the published ones do not grow in effect",
}
"""Where ours differs from the original by more than interpolation and rounding."""


@torch.no_grad()
def corrupt(x: Tensor, name: str, severity: int, generator: Randomness = None) -> Tensor:
    """https://arxiv.org/abs/1903.12261. Images under one of the 15 common corruptions.

    What a sample draws depends on its own stream and the corruption alone, not on the batch; all severities share
    the draws, so that a higher severity is the same noise, only more. ``generator`` given as Streams is not advanced.
    Parameters are the published ones for 32 and 224 pixels, interpolated in between; see ``APPROXIMATED`` for
    the corruptions that differ from the original in more than that.

    Args:
        x: floats ``(n, c, h, w)`` in 0..1, any size, any number of channels.
        name: a key of ``CORRUPTIONS``.
        severity: 1 to 5.
        generator: a generator, one stream per sample, or None for seed 0.

    Returns:
        Images in 0..1 in the shape and dtype of ``x``.

    Raises:
        UnsupportedError: for an unknown name or severity, or inputs that are no images in 0..1.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise UnsupportedError(f"inputs are {x.dtype} of shape {tuple(x.shape)}: expected float images (n, c, h, w)")
    chosen = parameters(name, severity, min(x.shape[2:]))
    if len(x) == 0:
        return x.clone()
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise UnsupportedError(f"inputs span {low:g} to {high:g}: scale them to 0..1")
    streams = Streams.of(generator, len(x), x.device).fork(1 + list(CORRUPTIONS).index(name))
    return CORRUPTIONS[name](x.float(), chosen, streams).clamp(0, 1).to(x.dtype)
