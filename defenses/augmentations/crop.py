"""Random crops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ...attacks.errors import UnsupportedError
from ..augmentation import Kind, check_images


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """Pads each image with ``padding`` black pixels on all sides and cuts its size out again at a random place."""

    padding: int = 4

    modalities: ClassVar[frozenset[Kind]] = frozenset({"image"})

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise UnsupportedError(f"crop is {self.padding}: it is a number of pixels, at least 1")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        check_images(x, "crop")
        n, c, h, w = x.shape
        top, left = torch.randint(2 * self.padding + 1, (2, n, 1), generator=generator).to(x.device)
        rows = (top + torch.arange(h, device=x.device)).view(n, 1, h, 1)
        columns = (left + torch.arange(w, device=x.device)).view(n, 1, 1, w)
        samples, channels = torch.arange(n, device=x.device), torch.arange(c, device=x.device)
        return functional.pad(x, [self.padding] * 4)[samples.view(n, 1, 1, 1), channels.view(1, c, 1, 1), rows, columns]
