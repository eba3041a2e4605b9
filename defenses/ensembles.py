"""Several networks as one: their answers averaged, weighed or counted, and attacked as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ..attacks.errors import UnsupportedError

Combination = Literal["logits", "weighted", "majority"]

_SHARP = 20.0
"""How sharply the surrogate of a vote prefers a member's first class."""


class Ensemble(nn.Module):
    """Members that see the same input; the combination gives the answer.

    - ``logits``: the mean of the members' logits.
    - ``weighted``: the log of the mean of their probabilities, weighed by ``weights`` (see :func:`fit_weights`).
    - ``majority``: the class that most members choose; equal votes are settled by the members' mean probability, which
      counts as one more vote. The value is the log of the shares of votes, which has no gradient, so an attack follows
      that of a surrogate: the log of the mean of sharpened probabilities, ``softmax(20 * logits / spread)``, in which
      a member that is sure does not count more than one vote.

    Raises:
        UnsupportedError: for fewer than two members, or weights that do not fit.
    """

    weights: Tensor

    def __init__(self, members: Sequence[nn.Module], combination: Combination = "logits") -> None:
        super().__init__()
        if len(members) < 2:
            raise UnsupportedError(f"an ensemble needs two members or more, not {len(members)}")
        self.members = nn.ModuleList(members)
        self.combination: Combination = combination
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)``; their softmax is the mean probability (weighted) or the shares of votes (majority)."""
        logits = torch.stack([member(x) for member in self.members])
        match self.combination:
            case "logits":
                return logits.mean(0)
            case "weighted":
                return mixture(logits, self.weights.to(logits))
            case "majority":
                return _votes(logits)


def mixture(logits: Tensor, weights: Tensor) -> Tensor:
    """Log of the weighted mean ``(n, k)`` of the probabilities of members' ``logits`` ``(m, n, k)``."""
    return (log_softmax(logits, 2) + weights.clamp_min(1e-12).log()[:, None, None]).logsumexp(0)


def _votes(logits: Tensor) -> Tensor:
    """Log of the shares of votes, the mean probability among them; the gradient is the surrogate's."""
    k, members = logits.shape[2], len(logits)
    spread = (logits.amax(2, keepdim=True) - logits.mean(2, keepdim=True)).detach().clamp_min(1e-12)
    surrogate = mixture(_SHARP * logits / spread, logits.new_full((members,), 1 / members))
    with torch.no_grad():
        votes = nn.functional.one_hot(logits.argmax(2), k).to(logits.dtype).sum(0)
        exact = ((votes + logits.softmax(2).mean(0)) / (members + 1)).clamp_min(1e-12).log()
    return surrogate + (exact - surrogate).detach()


@torch.no_grad()
def _member_logits(ensemble: Ensemble, batches: Sequence[Tensor]) -> Tensor:
    """``(m, n, k)``, on the CPU."""
    return torch.cat([torch.stack([member(x) for member in ensemble.members]).cpu() for x in batches], 1)


def fit_weights(ensemble: Ensemble, batches: Sequence[Tensor], y: Tensor, *, steps: int = 5000) -> Tensor:
    """Sets the weights ``(m,)`` of a weighted ensemble to those that make held-out labels most likely; returns them.

    The likelihood of a mixture is concave in its weights, and expectation-maximisation climbs it without a step size.

    Args:
        batches: held-out inputs, on the members' device; not those that members were trained on, or the one that
            remembers them best wins.
        y: their labels, int64 ``(n,)``.
        steps: of expectation-maximisation, which stops sooner when nothing moves.

    Raises:
        UnsupportedError: when there are no samples, or not as many labels.
    """
    logits = _member_logits(ensemble, batches) if len(batches) else torch.zeros(0, 0, 0)
    if logits.shape[1] == 0 or logits.shape[1] != len(y):
        raise UnsupportedError(f"{logits.shape[1]} held-out inputs and {len(y)} labels: both must be the same above 0")
    own = log_softmax(logits.double(), 2).gather(2, y.cpu().expand(len(logits), -1)[:, :, None])[:, :, 0]
    weights = torch.full((len(own),), 1 / len(own), dtype=torch.float64, device=own.device)
    for _ in range(steps):
        shares = (own + weights.log()[:, None]).softmax(0).mean(1)
        moved = float((shares - weights).abs().max())
        weights = shares.clamp_min(1e-12)
        if moved < 1e-9:
            break
    ensemble.weights.copy_(weights / weights.sum())
    return ensemble.weights
