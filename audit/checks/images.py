"""Images as checks beyond norm balls see them: encoded, scaled to 0..1, and given to the model again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attacks.errors import UnsupportedError
from ...attacks.models import attacking
from ...attacks.streams import Streams
from ..samples import Samples
from ..target import Target
from .base import encoded
from .evasion_search import module_logits
from .outputs import require_finite, spaced


@dataclass(frozen=True, slots=True)
class Images:
    """Samples of an image target.

    Attributes:
        samples: in the order of the tensors.
        x: float32 ``(n, c, h, w)`` in 0..1 whatever the target's bounds, on the CPU.
        y: int64 ``(n,)``, labels.
        ids: int64 ``(n,)``, to which random draws belong.
        target: the model.
    """

    samples: Samples
    x: Tensor
    y: Tensor
    ids: Tensor
    target: Target

    @classmethod
    def of(cls, target: Target, samples: Samples, limit: int | None) -> Images:
        """At most ``limit`` samples, evenly spaced.

        Raises:
            UnsupportedError: when the encoded inputs are no images ``(n, c, h, w)``.
        """
        samples = spaced(samples, limit)
        x, y = encoded(target, samples)
        if x.dim() != 4:
            raise UnsupportedError(f"inputs are encoded to shape {tuple(x.shape)}: this check needs (n, c, h, w)")
        low, high = target.bounds
        unit = ((x - low) / (high - low)).clamp(0, 1)
        return cls(samples, unit, y, torch.from_numpy(samples.ids), target)

    def __len__(self) -> int:
        return len(self.x)

    def select(self, rows: Tensor) -> Images:
        """The images at these positions (int64 ``(m,)``)."""
        return Images(self.samples.select(rows.numpy()), self.x[rows], self.y[rows], self.ids[rows], self.target)

    def streams(self, seed: int) -> Streams:
        return Streams.from_seed(seed, self.ids)

    def model(self, x: Tensor) -> Tensor:
        """The target's module on images in 0..1, on its device; differentiable."""
        low, high = self.target.bounds
        return self.target.module(x if (low, high) == (0, 1) else x * (high - low) + low)

    def attacked(self) -> AbstractContextManager[None]:
        """Eval mode and frozen parameters for the target's module, as found again afterwards."""
        return attacking(self.target.module)

    def logits(self, x: Tensor, batch_size: int | None) -> Tensor:
        """Finite float32 logits ``(n, k)`` on the CPU for these samples, given as images in 0..1.

        Raises:
            ModelError: when some are NaN or infinite.
        """
        low, high = self.target.bounds
        logits = module_logits(self.target, x if (low, high) == (0, 1) else x * (high - low) + low, batch_size)
        require_finite(logits, self.samples)
        return logits


def compact(classes: Tensor, k: int) -> Tensor:
    """Class numbers in the smallest integer type that holds ``k`` classes."""
    return classes.to(torch.uint8 if k <= 2**8 else torch.int16 if k <= 2**15 else torch.int32)


def verdict(logits: Tensor, classes: tuple[str, ...]) -> str:
    """Class and confidence of one row of logits ``(k,)``, for captions: ``shirt 87 %``."""
    confidence, c = torch.softmax(logits.double(), 0).max(0)
    return f"{classes[int(c)]} {100 * float(confidence):.0f} %"
