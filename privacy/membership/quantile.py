"""Quantile regression: is the model surer of a record than of others that look like it? (arXiv 2307.03694)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError
from .statistics import Floats, Mask


@dataclass(frozen=True, slots=True)
class QuantileRegression:
    """One regressor in place of shadow models: mean and deviation of a non-member's score given the record.

    It needs the model's scores and records that were not trained on, nothing of the model's inside. A record's
    membership score is the number of deviations by which its score exceeds the mean for such a record, so that one
    threshold is the same quantile everywhere. Non-members are judged by a regressor fitted on the other half of them.

    Args:
        components: principal components of the record that the regressor sees, besides the label.
        hidden: width of its one hidden layer.
        steps: of its training, on all its records at once.
        seed: of its weights.
    """

    components: int = 64
    hidden: int = 64
    steps: int = 300
    seed: int = 0

    def __call__(self, scores: Floats, x: Tensor, y: NDArray[np.int64], population: Mask) -> Floats:
        """Membership scores ``(n,)``.

        Args:
            scores: of the model under attack ``(n,)``, by :func:`.statistics.scaled_confidence`.
            x: records ``(n, ...)``.
            y: labels ``(n,)``.
            population: which records ``(n,)`` are known not to be members.

        Raises:
            UnsupportedError: with fewer than 20 records in the population.
        """
        known = np.flatnonzero(population)
        if len(known) < 20:
            raise UnsupportedError(f"quantile regression needs at least 20 non-members, there are {len(known)}")
        target = torch.from_numpy(scores.astype(np.float32))
        fold = np.arange(len(scores)) % 2
        fold[known] = np.arange(len(known)) % 2
        result = np.empty(len(scores))
        for part in (0, 1):
            train = torch.from_numpy(known[fold[known] != part])
            features = _features(x, y, train, self.components)
            mean, deviation = self._fitted(features[train], target[train], features)
            judged = fold == part
            result[judged] = ((target - mean) / deviation).numpy()[judged]
        return result

    def _fitted(self, features: Tensor, scores: Tensor, everyone: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation ``(n,)`` predicted for everyone, by Gaussian likelihood with early stopping."""
        middle, spread = scores.mean(), scores.std() + 1e-6
        wanted = (scores - middle) / spread
        held = torch.arange(len(scores)) % 5 == 0
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            width = features.shape[1]
            net = nn.Sequential(nn.Linear(width, self.hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(self.hidden, 2))
            optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=1e-2)
            best, kept = float("inf"), {name: value.clone() for name, value in net.state_dict().items()}
            for _ in range(self.steps):
                net.train()
                optimizer.zero_grad()
                _gaussian_loss(net(features[~held]), wanted[~held]).backward()
                optimizer.step()
                net.eval()
                with torch.no_grad():
                    loss = float(_gaussian_loss(net(features[held]), wanted[held]))
                if loss < best:
                    best, kept = loss, {name: value.clone() for name, value in net.state_dict().items()}
            net.load_state_dict(kept)
        with torch.no_grad():
            mean, log_deviation = net(everyone).unbind(1)
        return mean * spread + middle, log_deviation.clamp(-5, 5).exp() * spread


def _gaussian_loss(predicted: Tensor, scores: Tensor) -> Tensor:
    mean, log_deviation = predicted[:, 0], predicted[:, 1].clamp(-5, 5)
    return (((scores - mean) / log_deviation.exp()) ** 2 / 2 + log_deviation).mean()


def _features(x: Tensor, y: NDArray[np.int64], train: Tensor, components: int) -> Tensor:
    """Principal components of the records, by those of ``train``, scaled to deviation 1; then the label, one-hot."""
    flat = x.flatten(1).float()
    centred = flat - flat[train].mean(0)
    rank = min(components, len(train) - 1, flat.shape[1])
    covariance = centred[train].T @ centred[train] if flat.shape[1] <= len(train) else None
    if covariance is not None:
        directions = torch.linalg.eigh(covariance).eigenvectors[:, -rank:]
    else:
        directions = torch.linalg.svd(centred[train], full_matrices=False).Vh[:rank].T
    projected = centred @ directions
    labels = nn.functional.one_hot(torch.from_numpy(y), int(y.max()) + 1).float()
    return torch.cat([projected / (projected[train].std(0) + 1e-6), labels], 1)
