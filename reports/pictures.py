"""Tensors as small PNG pictures: images, magnified differences, heat maps over an image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_COLD, _MILD, _HOT = (np.array(c, dtype=np.float32) for c in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))
"""Blue, near white, red (ColorBrewer RdBu ends): apart for every kind of colour vision."""


def image_pixels(image: Floats, low: float = 0.0, high: float = 1.0) -> Bytes:
    """``(c, h, w)`` or ``(h, w)`` with values in ``low..high`` to uint8 ``(h, w, 3)``; NaN is black."""
    spread = (high - low) or 1.0
    scaled = np.nan_to_num(np.clip((_three_channels(image) - low) / spread, 0, 1))
    return np.round(scaled * 255).astype(np.uint8)


def difference_pixels(difference: Floats, full: float) -> Bytes:
    """Signed change to blue (darker) over white (none) to red (brighter), uint8 ``(h, w, 3)``.

    ``full`` is the change that has full colour. Of several channels the one that changed most is shown.
    """
    return diverging(strongest(difference), full)


def heat_pixels(heat: Floats, full: float, under: Bytes | None) -> Bytes:
    """Attribution as colour, red for and blue against, over ``under`` in grey, uint8 ``(h, w, 3)``.

    Channels are summed. ``under`` must have the same height and width.
    """
    signed = _channel_sum(heat)
    colour = diverging(signed, full).astype(np.float32)
    if under is None:
        return colour.astype(np.uint8)
    grey = under.astype(np.float32).mean(axis=2, keepdims=True).repeat(3, axis=2)
    # The image is paled so that colour always reads as heat, and heat covers it where it is strong.
    pale = 96 + grey * 0.6
    weight = np.clip(np.abs(signed) / (full or 1.0), 0, 1)[..., None] ** 0.7
    return np.round(pale * (1 - weight) + colour * weight).astype(np.uint8)


def heat_scale(heats: Sequence[Floats]) -> float:
    """The strength that gets full colour: the 99th percentile, so that one hot pixel does not blank the rest."""
    strengths = [np.abs(_channel_sum(heat)).ravel() for heat in heats]
    finite = np.concatenate(strengths) if strengths else np.zeros(1, dtype=np.float32)
    finite = finite[np.isfinite(finite)]
    return float(np.percentile(finite, 99)) if finite.size and finite.max() > 0 else 1.0


def diverging(values: Floats, full: float) -> Bytes:
    """``(h, w)`` in ``-full..full`` to blue, near white, red."""
    share = np.nan_to_num(np.clip(values / (full or 1.0), -1, 1))[..., None]
    mixed = np.where(share < 0, _MILD + (_COLD - _MILD) * -share, _MILD + (_HOT - _MILD) * share)
    return np.round(mixed).astype(np.uint8)


def strongest(values: Floats) -> Floats:
    """``(c, h, w)`` to ``(h, w)``: at each pixel the value of the channel that is largest in size, with its sign."""
    if values.ndim == 2:
        return values
    return np.take_along_axis(values, np.abs(values).argmax(axis=0)[None], axis=0)[0]


def png(pixels: Bytes, side: int, smooth: bool) -> bytes:
    """PNG of uint8 ``(h, w, 3)``, shrunk to ``side`` pixels where larger.

    ``smooth`` averages (for images); otherwise pixels are picked, because averages of a perturbation cancel out.
    """
    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    if scale < 1:
        shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(shape, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def data_uri(data: bytes) -> str:
    """PNG bytes as a ``data:`` URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def as_floats(values: NDArray[Any]) -> Floats:
    """float32; integers of eight bits are taken as 0..255 and scaled to 0..1."""
    return values.astype(np.float32) / np.float32(255) if values.dtype == np.uint8 else values.astype(np.float32)


def _three_channels(image: Floats) -> Floats:
    if image.ndim == 2:
        image = image[None]
    channels = {1: image.repeat(3, axis=0), 3: image}.get(len(image))
    return (image[:1].repeat(3, axis=0) if channels is None else channels).transpose(1, 2, 0)


def _channel_sum(heat: Floats) -> Floats:
    return heat if heat.ndim == 2 else heat.sum(axis=0)
