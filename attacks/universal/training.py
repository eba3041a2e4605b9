"""What both universal attacks climb, and in which order they see the samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..attack import Model
from ..errors import UnsupportedError
from ..losses import cross_entropy
from ..models import check_logits
from ..search import NO_GRADIENT


def ascent(model: Model, x: Tensor, y: Tensor, variable: Tensor, clip: float, *, targeted: bool) -> Tensor:
    """The gradient of the mean loss on ``x``, which depends on ``variable``, in the shape of ``variable``.

    The loss of a sample that already errs by far is cut at ``clip`` (nats), so that it leaves the others the say;
    targeted, it is the log-probability of class ``y``.

    Raises:
        UnsupportedError: when the model gives no gradient.
    """
    logits = check_logits(model(x), len(x))
    loss = cross_entropy(logits, y)
    gain = -loss if targeted else loss.clamp_max(clip)
    if not gain.requires_grad:
        raise UnsupportedError(NO_GRADIENT)
    (gradient,) = torch.autograd.grad(gain.mean(), variable, allow_unused=True)
    if gradient is None:
        raise UnsupportedError(NO_GRADIENT)
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def batches(n: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of ``steps`` batches: the samples in random order, again and again, no batch across two passes."""
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(left) == 0:
            left = torch.randperm(n, generator=generator)
        yield left[:size]
        left = left[size:]


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """The generator given, or a new one on the CPU with seed 0."""
    return torch.Generator().manual_seed(0) if generator is None else generator
