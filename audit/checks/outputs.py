"""What a model says about samples: selection, batching, and a check that it says numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ModelError
from ..samples import Samples
from ..target import Target
from .base import Progress


def spaced(samples: Samples, limit: int | None) -> Samples:
    """At most ``limit`` samples, evenly spaced so that data sorted by class stay represented."""
    n = len(samples)
    if limit is None or limit >= n:
        return samples
    return samples.select(np.arange(limit, dtype=np.int64) * n // limit)


def all_logits(target: Target, samples: Samples, batch_size: int | None, progress: Progress | None = None) -> Tensor:
    """Float32 logits ``(n, k)`` of all samples, on the CPU.

    Raises:
        ModelError: when some are NaN or infinite; names the first samples.
    """
    parts = []
    for raw, labels in samples.batches(batch_size or 512):
        parts.append(target.logits(raw))
        if progress is not None:
            progress.advance(len(labels))
    logits = torch.cat(parts)
    require_finite(logits, samples)
    return logits


def require_finite(logits: Tensor, samples: Samples) -> None:
    """Refuses logits ``(n, k)`` that are not all finite.

    Raises:
        ModelError: names the first samples.
    """
    bad = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        first = ", ".join(str(samples.names[i]) for i in bad[:3])
        raise ModelError(f"the model gives NaN or infinite logits for {len(bad)} of {len(logits)} samples: {first}")


def same_predictions(logits: Tensor, recorded: Tensor, rounding: float = 1e-4) -> NDArray[np.bool_]:
    """Whether each sample ``(n,)`` is classified as recorded, where a near tie may go either way.

    Batches of other sizes and other machines add up in another order; ``rounding`` is relative to the largest logit.
    """
    best = logits.max(1).values
    of_recorded = logits.gather(1, recorded.argmax(1)[:, None])[:, 0]
    return (best - of_recorded <= rounding * logits.abs().amax(1).clamp_min(1)).numpy()
