"""From raw inputs to the tensors that attacks perturb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import DataError

Layout = Literal["hw", "hwc", "chw"]

_CHANNELS = (1, 3, 4)


def find_layout(shape: tuple[int, ...]) -> Layout:
    """The order of the axes of one image of this shape.

    Raises:
        DataError: when it is no image, or the shape does not tell where the channels are.
    """
    if len(shape) == 2:
        return "hw"
    if len(shape) != 3:
        raise DataError(f"an image has shape (h, w), (h, w, c) or (c, h, w); one sample here has shape {shape}")
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    if first == last:
        raise DataError(f"the shape {shape} does not tell which axis holds the channels: set data.layout to hwc or chw")
    return "chw" if first else "hwc"


@dataclass(frozen=True, slots=True)
class ImageEncode:
    """Images as float32 ``(n, c, h, w)`` in 0..1: uint8 is divided by 255, floats must be in 0..1 already.

    Args:
        layout: order of the axes; found from the shape of each batch when None.
        size: height and width to resize to (bilinear, antialiased), or None.
    """

    layout: Layout | None = None
    size: tuple[int, int] | None = None

    def __call__(self, raw: Any, /) -> Tensor:
        array = np.asarray(raw)
        layout = self.layout or find_layout(array.shape[1:])
        if array.ndim != len(layout) + 1:
            raise DataError(f"layout {layout} needs {len(layout)} axes a sample, these have shape {array.shape[1:]}")
        x = torch.from_numpy(np.ascontiguousarray(array))
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        x = {"hw": lambda: x.unsqueeze(1), "hwc": lambda: x.movedim(-1, 1), "chw": lambda: x}[layout]()
        if self.size is not None and x.shape[2:] != self.size:
            x = functional.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return x.clamp(0, 1).contiguous()


@dataclass(frozen=True, slots=True)
class TableEncode:
    """Rows ``(n, d)`` as float32."""

    def __call__(self, raw: Any, /) -> Tensor:
        return torch.from_numpy(np.asarray(raw).astype(np.float32))
