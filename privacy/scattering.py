"""Scattering features: wavelets, moduli and averages, all fixed in advance, so that they cost no privacy.

A linear classifier on them is the strongest known start for private training without public data on small images
(arXiv 2011.11660): far fewer weights take noise than in a network trained end to end. The transform is that of
arXiv 1203.1513: two layers of Morlet wavelets at two scales and eight angles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SCALES, ANGLES = 2, 8
PATHS = 1 + SCALES * ANGLES + ANGLES * ANGLES
"""Channels for each channel of the input: the average, one wavelet, two wavelets."""

_STEP = 2**SCALES


class Scattering(nn.Module):
    """Maps images ``(n, c, h, w)`` to ``(n, 81 c, h / 4, w / 4)``; no parameters.

    Args:
        side: height and width, a multiple of 4.
    """

    wavelets: Tensor
    average: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.pad = side, _STEP
        size = side + 2 * self.pad
        waves = [[_morlet(size, scale, angle) for angle in range(ANGLES)] for scale in range(SCALES)]
        self.register_buffer("wavelets", torch.fft.fft2(torch.stack([torch.stack(one) for one in waves])), False)
        self.register_buffer("average", _averages(size, side, self.pad), False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        x = nn.functional.pad(x, [self.pad] * 4, mode="reflect").flatten(0, 1).unsqueeze(1)
        fine, coarse = self.wavelets
        spectrum = torch.fft.fft2(x)
        once = _moduli(spectrum, fine)
        parts = [x, once, _moduli(spectrum, coarse, 2), _moduli(torch.fft.fft2(once), coarse, 2)]
        paths = torch.cat([self._averaged(part) for part in parts], 1)
        return paths.view(n, c * PATHS, *paths.shape[2:])

    def _averaged(self, x: Tensor) -> Tensor:
        """A Gaussian average at every fourth place, rows and columns apart; ``x`` may have every second place only."""
        step = self.average.shape[1] // x.shape[-1]
        weights = self.average[:, ::step] / self.average[:, ::step].sum(1, keepdim=True)
        return weights @ x @ weights.T


def _moduli(spectrum: Tensor, wavelets: Tensor, step: int = 1) -> Tensor:
    """``|x * wavelet|`` at every ``step``-th place, from the spectrum of ``x``: ``(n, k, s, s)`` to
    ``(n, k * wavelets, s / step, s / step)``."""
    product = spectrum.unsqueeze(2) * wavelets
    if step > 1:  # leaving places out folds the spectrum
        product = product.unflatten(-1, (step, -1)).mean(-2).unflatten(-2, (step, -1)).mean(-3)
    return torch.fft.ifft2(product).abs().flatten(1, 2)


def _morlet(size: int, scale: int, angle: int) -> Tensor:
    """A complex wave under an elongated Gaussian, less what makes its mean zero; wrapped around the edges."""
    sigma, frequency, slant = 0.8 * 2**scale, 0.75 * math.pi / 2**scale, 4 / ANGLES
    axis = torch.fft.fftfreq(size, 1 / size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    turn = math.pi * angle / ANGLES
    along = columns * math.cos(turn) + rows * math.sin(turn)
    across = -columns * math.sin(turn) + rows * math.cos(turn)
    envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
    wave = envelope * torch.exp(1j * frequency * along)
    wave = wave - envelope * (wave.sum() / envelope.sum())
    return wave * (slant / (2 * math.pi * sigma**2))


def _averages(size: int, side: int, pad: int) -> Tensor:
    """``(side / 4, size)``: Gaussian weights around every fourth place of the image."""
    sigma = 0.8 * 2 ** (SCALES - 1)
    centres = pad + (_STEP - 1) / 2 + torch.arange(side // _STEP) * _STEP
    weights = torch.exp(-((torch.arange(size) - centres.unsqueeze(1)) ** 2) / (2 * sigma**2))
    return weights / weights.sum(1, keepdim=True)
