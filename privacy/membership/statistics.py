"""What reference models say of each record, gathered for the attacks that compare a model with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...attacks.errors import UnsupportedError
from .threshold import log_probabilities

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class References:
    """Scores of reference models.

    Attributes:
        scores: ``(m, n, q)``, of each model on each of the q versions of each record.
        member: ``(m, n)``, whether the model was trained on the record.
    """

    scores: Floats
    member: Mask

    def __post_init__(self) -> None:
        if self.scores.ndim != 3 or self.member.shape != self.scores.shape[:2]:
            raise UnsupportedError(
                f"reference scores have shape {self.scores.shape} and membership {self.member.shape}: "
                "expected (models, records, queries) and (models, records)"
            )
        if not np.isfinite(self.scores).all():
            raise UnsupportedError("some reference scores are NaN or infinite")

    def moments(self, *, member: bool) -> Moments:
        """Mean and variance over the models that were trained on each record, or over those that were not."""
        chosen = (self.member if member else ~self.member)[:, :, None]
        count = chosen.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (self.scores * chosen).sum(0) / count
            squares = (((self.scores - mean) ** 2) * chosen).sum(0)
        return Moments(count[:, 0], mean, squares)


@dataclass(frozen=True, slots=True)
class Moments:
    """Attributes: models ``(n,)`` counted, mean ``(n, q)``, summed squared deviations ``(n, q)``."""

    count: NDArray[np.int64]
    mean: Floats
    squares: Floats

    @property
    def variance(self) -> Floats:
        """Of each record by itself ``(n, q)``, unbiased."""
        return self.squares / np.maximum(self.count - 1, 1)[:, None]

    @property
    def pooled(self) -> Floats:
        """One variance ``(q,)`` for all records: of the deviations from each record's own mean."""
        return np.nansum(self.squares, 0) / max(int(np.maximum(self.count - 1, 0).sum()), 1)


def scaled_confidence(logits: NDArray[np.floating], y: NDArray[np.int64]) -> Floats:
    """``log(p / (1 - p))`` of the label's probability ``(...)``, from logits ``(..., n, k)`` and labels ``(n,)``.

    Over retrained models it is nearly Gaussian (arXiv 2112.03570). Exact where p rounds to 1.
    """
    logits = logits.astype(np.float64)
    own = np.take_along_axis(logits, np.broadcast_to(y[:, None], (*logits.shape[:-1], 1)), -1)
    others = logits.copy()
    np.put_along_axis(others, np.broadcast_to(y[:, None], (*logits.shape[:-1], 1)), -np.inf, -1)
    top = others.max(-1, keepdims=True)
    return (own - top)[..., 0] - np.log(np.exp(others - top).sum(-1))


def label_log_probability(logits: NDArray[np.floating], y: NDArray[np.int64]) -> Floats:
    """Log probability of the label ``(...)``, from logits ``(..., n, k)`` and labels ``(n,)``."""
    flat = logits.reshape(-1, logits.shape[-1])
    labels = np.broadcast_to(y, logits.shape[:-1]).reshape(-1)
    return log_probabilities(flat.astype(np.float64))[np.arange(len(flat)), labels].reshape(logits.shape[:-1])
