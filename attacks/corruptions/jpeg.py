"""Baseline JPEG (ITU-T T.81) without the entropy coding, which loses nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..streams import Streams

# Tables K.1 and K.2 of ITU-T T.81.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg_compression(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Compresses at quality ``c[0]`` and decodes: 8-bit input, colour at half resolution, quantised cosine transform.

    Values of decoders differ by a level or two: ours computes with floats. Images with a number of channels other
    than three are compressed channel by channel, as brightness.
    """
    del streams
    h, w = x.shape[2:]
    quality = round(c[0])
    levels = (x * 255).round().clamp(0, 255)
    luminance = _table(_LUMINANCE, quality, x.device)
    if x.shape[1] != 3:
        decoded = _quantised(levels - 128, luminance) + 128
    else:
        ycbcr = torch.einsum("kc,nchw->nkhw", torch.tensor(_TO_YCBCR, device=x.device), levels)
        y = _quantised(ycbcr[:, :1].round() - 128, luminance) + 128
        colour = _half_resolution(ycbcr[:, 1:], _table(_CHROMINANCE, quality, x.device))
        rgb = torch.tensor(_TO_RGB, device=x.device)
        decoded = torch.einsum("ck,nkhw->nchw", rgb, torch.cat([y, colour[:, :, :h, :w]], 1))
    return decoded.round().clamp(0, 255) / 255


def _half_resolution(colour: Tensor, table: Tensor) -> Tensor:
    """Colour planes ``(n, 2, h, w)`` halved, quantised, and doubled again; sides rounded up to even numbers."""
    # As libjpeg does: columns are filled up before halving, rows after it.
    filled = functional.pad(colour, (0, -colour.shape[3] % 16, 0, colour.shape[2] % 2), mode="replicate")
    halved = _quantised(functional.avg_pool2d(filled, 2).round(), table)
    return functional.interpolate(halved, scale_factor=2.0, mode="bilinear", align_corners=False)


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """Planes ``(n, c, h, w)`` centred at 0, after quantisation of each 8x8 block by ``table``."""
    rows, columns = plane.shape[2:]
    padded = functional.pad(plane, (0, -columns % 8, 0, -rows % 8), mode="replicate")
    n, channels, h, w = padded.shape
    transform = _cosines(plane.device)
    blocks = padded.view(n, channels, h // 8, 8, w // 8, 8).transpose(3, 4)
    coefficients = (transform @ blocks @ transform.T / table).round() * table
    decoded = (transform.T @ coefficients @ transform).transpose(3, 4).reshape(n, channels, h, w)
    return decoded[:, :, :rows, :columns]


def _cosines(device: torch.device) -> Tensor:
    """The orthonormal 8-point cosine transform ``(8, 8)``, frequencies first."""
    k = torch.arange(8, device=device, dtype=torch.float32)
    matrix = torch.cos(math.pi / 8 * (k[None, :] + 0.5) * k[:, None]) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def _table(base: tuple[tuple[int, ...], ...], quality: int, device: torch.device) -> Tensor:
    """The quantisation table that libjpeg derives for a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base, device=device) * scale + 50) // 100).clamp(1, 255).float()
