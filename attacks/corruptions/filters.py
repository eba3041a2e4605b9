"""What several corruptions share: convolution with a kernel per image, warping, and the kernels themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def convolve(x: Tensor, kernels: Tensor) -> Tensor:
    """Images ``(n, c, h, w)`` with kernels ``(n, k, k)`` or ``(1, k, k)``, k odd; edges are repeated outwards.

    By the Fourier transform, whose cost depends neither on k nor on whether each image has its own kernel.
    """
    k = kernels.shape[-1]
    h, w = x.shape[2:]
    padded = functional.pad(x, (k // 2,) * 4, mode="replicate")
    shape = [padded.shape[2], padded.shape[3]]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, s=shape).unsqueeze(1)
    return torch.fft.irfft2(spectrum, s=shape)[:, :, k - 1 : k - 1 + h, k - 1 : k - 1 + w]


def gaussian_kernel(sigma: float, device: torch.device) -> Tensor:
    """``(1, k, k)``, cut at four standard deviations."""
    reach = max(1, math.ceil(4 * sigma))
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=device) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    return (weights[:, None] * weights[None, :]).unsqueeze(0)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Images ``(n, c, h, w)`` blurred by a Gaussian of ``sigma`` pixels."""
    return convolve(x, gaussian_kernel(sigma, x.device))


def disk_kernel(radius: float, device: torch.device) -> Tensor:
    """``(1, k, k)``: a disk whose rim covers pixels in part, so that it grows steadily with its radius."""
    reach = math.ceil(radius + 0.5)
    steps = torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)
    disk = (radius + 0.5 - torch.hypot(steps[:, None], steps[None, :])).clamp(0, 1)
    return (disk / disk.sum()).unsqueeze(0)


def motion_kernels(angles: Tensor, radius: float, sigma: float) -> Tensor:
    """``(n, k, k)``: one-sided streaks along ``angles`` ``(n,)`` (radians).

    Weights are half a Gaussian of ``sigma`` pixels, cut at ``2 * radius`` and at four standard deviations.
    """
    reach = max(1, math.ceil(min(2 * radius, 4 * sigma)))
    steps = torch.arange(reach + 1, device=angles.device, dtype=torch.float32)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    k = 2 * reach + 3
    kernels = torch.zeros(len(angles), k * k, device=angles.device)
    y, x = reach + 1 + steps * torch.sin(angles)[:, None], reach + 1 + steps * torch.cos(angles)[:, None]
    top, left = y.floor(), x.floor()
    for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, right in ((left, 1 - (x - left)), (left + 1, x - left)):
            kernels.scatter_add_(1, (row * k + column).long(), weights * down * right)
    return kernels.view(-1, k, k)


def warp(x: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Images ``(n, c, h, w)`` read at displaced places, ``dy`` and ``dx`` ``(n, h, w)`` in pixels; edges mirrored."""
    h, w = x.shape[2:]
    rows = torch.arange(h, device=x.device)[:, None] + dy
    columns = torch.arange(w, device=x.device)[None, :] + dx
    grid = torch.stack([2 * columns / max(w - 1, 1) - 1, 2 * rows / max(h - 1, 1) - 1], dim=-1)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def magnify(x: Tensor, factor: float) -> Tensor:
    """The centre of images ``(n, c, h, w)``, enlarged ``factor`` >= 1 times to the same size."""
    h, w = x.shape[2:]
    theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], device=x.device).expand(len(x), 2, 3)
    grid = functional.affine_grid(theta, [len(x), 1, h, w], align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def luminance(x: Tensor) -> Tensor:
    """Brightness ``(n, 1, h, w)``: ITU-R BT.601 weights for three channels, the mean for any other number."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)
