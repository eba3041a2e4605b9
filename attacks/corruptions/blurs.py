"""Blur of lenses and movement: defocus, glass, motion, zoom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..streams import Streams
from .filters import convolve, disk_kernel, gaussian_blur, magnify, motion_kernels, warp

_SMALLEST_SIGMA = 0.15  # a Gaussian of this width changes a pixel by less than 1e-9 of its neighbours


def defocus_blur(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """A disk of radius ``c[0]`` pixels, smoothed by a Gaussian of ``c[1]`` pixels."""
    del streams
    return gaussian_blur(convolve(x, disk_kernel(c[0], x.device)), max(c[1], _SMALLEST_SIGMA))


def glass_blur(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Gaussian blur, each pixel read from a random place up to ``c[1]`` pixels away, and blur again.

    Approximated: the original swaps neighbouring pixels one pair after the other, which no batch can do in parallel.
    """
    sigma, reach = c
    dy, dx = (reach * (2 * streams.uniform(x.shape[2:]) - 1) for _ in range(2))
    return gaussian_blur(warp(gaussian_blur(x, sigma), dy, dx), sigma)


def motion_blur(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """A streak of up to ``2 * c[0]`` pixels, 45 degrees or less from the horizontal, fading by ``c[1]`` pixels."""
    angles = (streams.uniform((1,)).squeeze(1) - 0.5) * (math.pi / 2)
    return convolve(x, motion_kernels(angles, *c))


def zoom_blur(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """The mean over magnifications from 1 to ``c[0]``: steps of half a pixel at the edge, but at most 16 of them."""
    del streams
    moved = (c[0] - 1) * max(x.shape[2:]) / 2
    count = min(max(4, math.ceil(2 * moved) + 1), 16)
    total = torch.zeros_like(x)
    for step in range(count):
        total += magnify(x, 1 + (c[0] - 1) * step / (count - 1))
    return total / count
