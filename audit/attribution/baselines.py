"""What stands for 'nothing here': the input from which attributions are measured and to which pixels are deleted."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ...attacks.errors import UnsupportedError

BaselineName = Literal["zero", "mean", "blur"]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)


def make_baseline(x: Tensor, kind: BaselineName, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """The baseline of each image, in the shape of ``x`` ``(n, c, h, w)``.

    ``zero``: every value 0 (or the nearest bound); ``mean``: each channel's mean over the image;
    ``blur``: the image under a Gaussian of a tenth of its longer side, which keeps colours and loses shapes.

    Raises:
        UnsupportedError: for another name.
    """
    match kind:
        case "zero":
            return torch.zeros_like(x).clamp(*bounds)
        case "mean":
            return x.mean((2, 3), keepdim=True).expand_as(x).contiguous()
        case "blur":
            return _blur(x, max(x.shape[2:]) / 10)
        case _:
            raise UnsupportedError(f"unknown baseline {kind!r}: choose one of {', '.join(BASELINES)}")


def _blur(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(2 * sigma))
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    c = x.shape[1]
    across = functional.pad(x, (radius, radius, 0, 0), mode="replicate")
    across = functional.conv2d(across, kernel.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)
    down = functional.pad(across, (0, 0, radius, radius), mode="replicate")
    return functional.conv2d(down, kernel.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)
