"""Diverse inputs: images shrunk and padded at random before each gradient (arXiv 1803.06978)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..streams import Streams


def diverse_inputs(x: Tensor, streams: Streams, chance: float, shrink: float) -> Tensor:
    """Images ``(n, c, h, w)``, each with ``chance`` shrunk to a random size and put at a random place on black.

    The paper resizes whole batches by one factor; here each image has its own, by one bilinear sampling, so that it
    does not depend on its batch. Differentiable.

    Args:
        shrink: the smallest size, as a share of the image's.
    """
    draw = streams.uniform((4,)).to(x)
    size = shrink + (1 - shrink) * draw[:, 1]
    size = torch.where(draw[:, 0] < chance, size, 1.0)
    # affine_grid maps output to input coordinates, both in -1..1; the room left is 1 - size to either side.
    centre = (2 * draw[:, 2:] - 1) * (1 - size)[:, None]
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / size
    theta[:, :, 2] = -centre / size[:, None]
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return torch.where((size < 1).view(-1, 1, 1, 1), moved, x)
