"""Translation invariance: gradients smoothed over the image, as if taken on shifted copies (arXiv 1904.02884)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def smoothed(gradient: Tensor, side: int) -> Tensor:
    """``(n, c, h, w)`` convolved with a Gaussian of ``side`` x ``side`` pixels, cut at three standard deviations.

    The side is cut to the largest odd one that the image holds; 1 changes nothing.
    """
    side = min(side, (min(gradient.shape[2:]) - 1) | 1)
    if side <= 1:
        return gradient
    reach = side // 2
    steps = torch.arange(-reach, reach + 1, dtype=gradient.dtype, device=gradient.device)
    weights = torch.exp(-((3 * steps / side * 2) ** 2) / 2)
    weights = weights / weights.sum()
    channels = gradient.shape[1]
    down, across = weights.view(1, 1, -1, 1), weights.view(1, 1, 1, -1)
    for kernel, padding in ((down, (reach, 0)), (across, (0, reach))):
        gradient = functional.conv2d(gradient, kernel.expand(channels, -1, -1, -1), padding=padding, groups=channels)
    return gradient
