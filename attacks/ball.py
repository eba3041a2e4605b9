"""The feasible set of one batch, with what its projections need computed once; and steepest-ascent steps in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .threat import Norm, Threat


@dataclass(frozen=True, slots=True)
class Ball:
    """The norm balls around ``x``, cut by the bounds.

    Attributes:
        threat: norm, radius and bounds.
        x: ``(n, ...)``, the centres.
        low, high: ``(n, ...)``, smallest and largest allowed value of each feature (linf); None for other norms.
    """

    threat: Threat
    x: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def around(cls, x: Tensor, threat: Threat) -> Ball:
        """The balls of ``threat`` around each sample of ``x``."""
        if threat.norm != "linf":
            return cls(threat, x)
        low, high = threat.bounds
        return cls(threat, x, (x - threat.eps).clamp_(low, high), (x + threat.eps).clamp_(low, high))

    def select(self, rows: Tensor) -> Ball:
        """The balls of some samples."""
        if self.low is None or self.high is None:
            return Ball(self.threat, self.x[rows])
        return Ball(self.threat, self.x[rows], self.low[rows], self.high[rows])

    def project(self, points: Tensor) -> Tensor:
        """The nearest feasible points (see :meth:`Threat.project`); for linf in place."""
        if self.low is None:
            return self.threat.project(points, self.x)
        return torch.clamp(points, self.low, self.high, out=points)


def unit(gradient: Tensor, norm: Norm) -> Tensor:
    """The gradient scaled to length one in l2, or its signs for linf; shape kept, zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    if not flat.is_cuda and bool((length > 1e-12).all()):
        return (flat / length).view_as(gradient)
    # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).view_as(gradient)


def sparse_sign(ball: Ball, points: Tensor, gradient: Tensor, k: Tensor) -> Tensor:
    """Signs of each sample's ``k`` ``(n,)`` largest gradient entries, divided by how many, zero elsewhere.

    The steepest-ascent step of l1 length one, spread over k features (arXiv 2103.01208). Features already at the bound
    that their gradient points to are not counted among the k. Those with larger gradients than the k are pushed all
    the same: it keeps the projection from taking back what they have.
    """
    flat = gradient.flatten(1)
    size = flat.abs()
    free = movable(gradient, points, ball.threat.bounds).flatten(1).abs()
    d = size.shape[1]
    k = k.clamp(1, d)
    # On a GPU a full sort is cheaper than asking for the largest k.
    largest = free.topk(d if size.is_cuda else int(k.max()), dim=1).values
    threshold = largest.gather(1, k[:, None] - 1)
    count = (free >= threshold).sum(1, keepdim=True)
    return (flat.sign() * (size >= threshold) / count).view_as(gradient)


def movable(gradient: Tensor, points: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The gradient without the features that sit at the bound it points to."""
    low, high = bounds
    blocked = torch.where(gradient > 0, points >= high, points <= low)
    return gradient.masked_fill(blocked, 0)


def sparse_step(ball: Ball, points: Tensor, gradient: Tensor, progress: float) -> Tensor:
    """:func:`sparse_sign` over a fifth of the features at ``progress`` 0, over fewer and fewer, and over one at 1."""
    widest = max(0.2 * gradient[0].numel(), 1.0)
    count = torch.full((len(points),), max(round(widest ** (1 - progress)), 1), device=points.device)
    return sparse_sign(ball, points, gradient, count)
