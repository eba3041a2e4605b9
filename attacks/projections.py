"""Projections that are not one line."""

from __future__ import annotations

import torch
from torch import Tensor


def project_l0(x_adv: Tensor, x: Tensor, eps: float, low: float, high: float) -> Tensor:
    """Keeps the ``floor(eps)`` largest changes of each sample and undoes the rest; shape of ``x``."""
    delta = (x_adv.clamp(low, high) - x).flatten(1)
    k = min(int(eps), delta.shape[1])
    kept = torch.zeros_like(delta)
    if k > 0:
        top = delta.abs().topk(k, dim=1).indices
        kept.scatter_(1, top, delta.gather(1, top))
    return torch.clamp(x + kept.view_as(x), low, high)


def project_l1_box(x_adv: Tensor, x: Tensor, eps: float, low: float, high: float) -> Tensor:
    """Euclidean projection onto the intersection of the l1 ball and the box (arXiv 2103.01208); shape of ``x``.

    The solution is ``sign(d) * clip(|d| - t, 0, room)`` with the smallest ``t >= 0`` whose l1 norm is at most eps.
    That norm is piecewise linear in t with breakpoints at |d| and |d| - room, so t is found by sorting them.
    """
    delta = (x_adv - x).flatten(1)
    origin = x.flatten(1)
    size = delta.abs()
    room = torch.where(delta > 0, high - origin, origin - low).clamp_min(0)
    capped = torch.minimum(size, room)
    inside = capped.sum(1) <= eps
    breaks, order = torch.cat([size, size - room], dim=1).sort(dim=1, descending=True)
    # Walking t down from +inf: each |d| adds one unit of slope, each |d| - room removes it.
    slope_steps = torch.cat([torch.ones_like(size), -torch.ones_like(size)], dim=1).gather(1, order)
    slope = slope_steps.cumsum(1)
    gaps = breaks[:, :-1] - breaks[:, 1:]
    norm_at = torch.cat([torch.zeros_like(breaks[:, :1]), (slope[:, :-1] * gaps).cumsum(1)], dim=1)
    at = (norm_at <= eps).sum(1, keepdim=True).sub(1).clamp_min(0)
    step = (eps - norm_at.gather(1, at)) / slope.gather(1, at).clamp_min(1)
    threshold = (breaks.gather(1, at) - step).clamp_min(0)
    shrunk = torch.minimum((size - threshold).clamp_min(0), room)
    result = torch.where(inside[:, None], capped, shrunk)
    return torch.clamp(x + (result * delta.sign()).view_as(x), low, high)
