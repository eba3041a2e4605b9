"""The shadow attack: a classifier learns from shadow models what members look like (arXiv 1610.05820)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError
from ..shadow.fresh import fresh
from ..shadow.training import ShadowConfig, fit
from .statistics import Floats, Mask, scaled_confidence

_TOP = 3
_FLOOR = -30.0


@dataclass(frozen=True, slots=True)
class ShokriAttack:
    """One network per class, trained side by side to tell members of shadow models from non-members by their outputs.

    A class with too few records shares one network with all the others like it.

    Args:
        hidden: width of the hidden layer.
        epochs: passes over each class's records.
        rows: at most so many pairs of shadow model and record, evenly spaced.
        seed: of weights and batches.
    """

    hidden: int = 64
    epochs: int = 15
    rows: int = 40_000
    seed: int = 0

    def __call__(
        self, target: NDArray[np.floating], shadows: NDArray[np.floating], member: Mask, y: NDArray[np.int64]
    ) -> Floats:
        """Membership scores ``(n,)``, log odds.

        Args:
            target: logits ``(n, k)`` of the model under attack.
            shadows: logits ``(m, n, k)`` of the shadow models.
            member: bool ``(m, n)``.
            y: labels ``(n,)``.

        Raises:
            UnsupportedError: when shapes do not fit.
        """
        if shadows.shape[1:] != target.shape or member.shape != shadows.shape[:2]:
            raise UnsupportedError(f"target logits have shape {target.shape}, those of shadows {shadows.shape}")
        seen = _features(shadows.reshape(-1, shadows.shape[-1]), np.tile(y, len(shadows)))
        labels, inside = np.tile(y, len(shadows)), member.ravel()
        kept = np.linspace(0, len(seen) - 1, min(self.rows, len(seen))).astype(np.int64)
        seen, labels, inside = seen[kept], labels[kept], inside[kept]
        middle, spread = seen.mean(0), seen.std(0) + 1e-6
        groups = _groups(labels, inside)
        index = [torch.from_numpy(np.flatnonzero(groups[labels] == g)) for g in range(groups.max() + 1)]
        plain = nn.Sequential(nn.Linear(seen.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, 2))
        models = [fresh(plain, self.seed + g) for g in range(len(index))]
        config = ShadowConfig(epochs=self.epochs, batch_size=64, lr=1e-2, seed=self.seed)
        x = torch.from_numpy(((seen - middle) / spread).astype(np.float32))
        models = fit(models, x, torch.from_numpy(inside.astype(np.int64)), index, config).models()
        asked = torch.from_numpy(((_features(target, y) - middle) / spread).astype(np.float32))
        with torch.no_grad():
            answers: Tensor = torch.stack([model(asked) for model in models])
        own = answers[torch.from_numpy(groups[y]), torch.arange(len(y))]
        return (own[:, 1] - own[:, 0]).double().numpy()


def _features(logits: NDArray[np.floating], y: NDArray[np.int64]) -> Floats:
    """Highest log probabilities in falling order, and the scaled confidence of the label ``(n, f)``."""
    ordered = np.sort(log_softmax(logits.astype(np.float64), axis=1), axis=1)[:, ::-1][:, :_TOP]
    label = scaled_confidence(logits, y)
    return np.concatenate([ordered.clip(_FLOOR), label.clip(_FLOOR, -_FLOOR)[:, None]], 1)


def _groups(labels: NDArray[np.int64], inside: Mask, least: int = 64) -> NDArray[np.int64]:
    """The network ``(k,)`` of each class: its own, or 0, the shared one, where there is too little to learn from."""
    k = int(labels.max()) + 1
    enough = [min((inside & (labels == c)).sum(), (~inside & (labels == c)).sum()) >= least for c in range(k)]
    groups = np.zeros(k, dtype=np.int64)
    first = 0 if all(enough) else 1
    groups[enough] = np.arange(sum(enough)) + first
    return groups
