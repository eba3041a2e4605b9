"""Scores for the threshold attack: how much a model behaves on a record as it does on its training data."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...attacks.errors import UnsupportedError

ScoreKind = Literal["loss", "confidence", "entropy", "margin"]
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)


def membership_scores(
    logits: NDArray[np.floating], y: NDArray[np.int64], kind: ScoreKind = "loss"
) -> NDArray[np.float64]:
    """Scores ``(n,)``, the higher the more like a member, from logits ``(n, k)`` and labels ``(n,)``.

    ``loss``: log probability of the label (Yeom et al., arXiv 1709.01604). ``confidence``: highest log probability
    (Salem et al., arXiv 1806.01246) and ``entropy``: negative entropy in nats; neither needs the label.
    ``margin``: logit of the label minus the highest other logit.

    Confident members stay apart even where their probabilities round to 1.

    Raises:
        UnsupportedError: for an unknown kind, or shapes that do not fit.
    """
    if logits.ndim != 2 or y.shape != logits.shape[:1]:
        raise UnsupportedError(f"logits have shape {logits.shape} and labels {y.shape}: expected (n, k) and (n,)")
    rows = np.arange(len(y))
    log_p = log_probabilities(logits.astype(np.float64))
    match kind:
        case "loss":
            return log_p[rows, y]
        case "confidence":
            return log_p.max(1)
        case "entropy":
            return (np.exp(log_p) * log_p).sum(1)
        case "margin":
            others = logits.astype(np.float64)
            others[rows, y] = -np.inf
            return logits[rows, y] - others.max(1)
        case _:
            raise UnsupportedError(f"score is {kind!r}: choose one of {', '.join(SCORE_KINDS)}")


def log_probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-softmax whose highest entry keeps its relative precision near 0, where log(1 + s) of a tiny s is lost."""
    rows, top = np.arange(len(logits)), logits.argmax(1)
    shifted = logits - logits[rows, top][:, None]
    others = np.exp(shifted)
    others[rows, top] = 0
    return shifted - np.log1p(others.sum(1, keepdims=True))
