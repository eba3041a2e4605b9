"""RMIA: does the model favour a record, over reference models, more than it favours others? (arXiv 2312.03262)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp

from ...attacks.errors import UnsupportedError
from .statistics import Floats, Mask, References


@dataclass(frozen=True, slots=True)
class RMIA:
    """Relative membership inference: needs few reference models.

    The probability of the label under the model is divided by its mean under the reference models; the score is the
    share of the population whose quotient is ``gamma`` times smaller.

    Args:
        online: average over models that were trained on the record and models that were not; offline only the latter
            are used, and what the former would say is guessed.
        gamma: how much more the record must be favoured, >= 1.
        offline_a: the guess: a model trained on the record says ``a * p + (1 - a)`` where one that was not says p. 0.3
            suits hard tasks (CIFAR-10 in the paper), 1 tasks where training hardly moves p.
    """

    online: bool = True
    gamma: float = 2.0
    offline_a: float = 0.3

    def __post_init__(self) -> None:
        if self.gamma < 1 or not 0 <= self.offline_a <= 1:
            raise UnsupportedError(f"RMIA needs gamma >= 1 and 0 <= offline_a <= 1, not {self.gamma}, {self.offline_a}")

    def __call__(self, target: Floats, references: References, population: Mask) -> Floats:
        """Membership scores ``(n,)``: the share of the population, and among equal shares the greater quotient first.

        A record is never compared with itself. As the share can only grow with a record's quotient, ranking by
        quotient within a share keeps what it says and breaks its many ties.

        Args:
            target: log probabilities of the label ``(n, q)`` under the model under attack.
            references: the same of the reference models.
            population: which records ``(n,)`` stand for the population.

        Raises:
            UnsupportedError: when shapes do not fit, or there are fewer than two records in the population.
        """
        if target.shape != references.scores.shape[1:] or population.shape != target.shape[:1]:
            raise UnsupportedError(f"target scores have shape {target.shape}, references {references.scores.shape}")
        if population.sum() < 2:
            raise UnsupportedError("RMIA needs at least two records that stand for the population")
        quotient = self.quotient(target, references)
        others = np.sort(quotient[population])
        limit = quotient - np.log(self.gamma)
        below = np.searchsorted(others, limit, side="right")
        if self.gamma == 1:
            below -= population  # itself: its quotient is not smaller
        count = len(others) - population
        return (below + expit(quotient)) / (count + 1)

    def quotient(self, target: Floats, references: References) -> Floats:
        """``log(p / mean p of the reference models)`` ``(n,)``, averaged over queries."""
        out = _log_mean(references.scores, ~references.member)
        if self.online:
            prior = np.logaddexp(out, _log_mean(references.scores, references.member)) - np.log(2)
        else:
            # (p_out + a p_out + 1 - a) / 2
            spread = np.log1p(self.offline_a) + out
            rest = np.full_like(out, np.log(max(1 - self.offline_a, 1e-300)))
            prior = np.logaddexp(spread, rest) - np.log(2)
        return (target - prior).mean(1)


def _log_mean(scores: Floats, chosen: Mask) -> Floats:
    """Log of the mean probability ``(n, q)`` over the chosen models."""
    count = chosen.sum(0)
    if (count == 0).any():
        raise UnsupportedError(f"{int((count == 0).sum())} records lack reference models on one side: train more")
    return logsumexp(scores, 0, b=np.broadcast_to(chosen[:, :, None], scores.shape)) - np.log(count)[:, None]
