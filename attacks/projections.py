"""Projections that are not one line."""

from __future__ import annotations

import torch
from torch import Tensor

L2_ROUNDS = 3
"""Rounds of :func:`project_l2_box`; on images with a tenth of the features at a bound the third changes t by < 1e-3."""


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
    if size.is_cuda:
        shrunk = _shrink_to_l1(size, room, eps)
    else:  # sorting is what costs, and most features of a sparse attack are unchanged
        changed = int((size > 0).sum(1).max()) if size.numel() else 0
        top = size.topk(changed, dim=1, sorted=False).indices
        part = _shrink_to_l1(size.gather(1, top), room.gather(1, top), eps)
        shrunk = torch.zeros_like(size).scatter_(1, top, part)
    return torch.clamp(x + (shrunk * delta.sign()).view_as(x), low, high)


def _shrink_to_l1(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """``clip(size - t, 0, room)`` ``(n, d)`` with the smallest ``t >= 0`` at which it sums to at most eps."""
    capped = torch.minimum(size, room)
    if size.shape[1] == 0:
        return capped
    breaks, order = torch.cat([size, size - room], dim=1).sort(dim=1, descending=True)
    # Walking t down from +inf: each size adds one unit of slope, each size - room removes it.
    slope_steps = torch.cat([torch.ones_like(size), -torch.ones_like(size)], dim=1).gather(1, order)
    slope = slope_steps.cumsum(1)
    gaps = breaks[:, :-1] - breaks[:, 1:]
    norm_at = torch.cat([torch.zeros_like(breaks[:, :1]), (slope[:, :-1] * gaps).cumsum(1)], dim=1)
    at = (norm_at <= eps).sum(1, keepdim=True).sub(1).clamp_min(0)
    step = (eps - norm_at.gather(1, at)) / slope.gather(1, at).clamp_min(1)
    threshold = (breaks.gather(1, at) - step).clamp_min(0)
    shrunk = torch.minimum((size - threshold).clamp_min(0), room)
    # Points far outside lose digits in the threshold; what is too much is at most some parts in a million.
    shrunk = shrunk * (eps / shrunk.sum(1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
    return torch.where(capped.sum(1, keepdim=True) <= eps, capped, shrunk)


def project_l2_box(x_adv: Tensor, x: Tensor, eps: float, low: float, high: float) -> Tensor:
    """Euclidean projection onto the intersection of the l2 ball and the box, to first order exact; shape of ``x``.

    The solution is ``sign(d) * min(t * |d|, room)`` with the ``t <= 1`` at which its norm is eps. Clipping after
    scaling would leave radius unused wherever features sit at a bound, as the black background of an image does. Each
    round counts the features now at a bound as given and scales the others up: t grows towards its value from
    below, so that the result is in the ball after any number of rounds.
    """
    delta = (x_adv - x).flatten(1)
    origin = x.flatten(1)
    size = delta.abs()
    room = torch.where(delta > 0, high - origin, origin - low).clamp_min(0)
    scale = (eps / _length(size).clamp_min(1e-12)).clamp_max(1)
    for _ in range(L2_ROUNDS):
        wanted = size * scale
        full = wanted > room
        left = (eps**2 - _length(room * full).square()).clamp_min(0).sqrt()
        free = _length(wanted.masked_fill_(full, 0)) / scale.clamp_min(1e-30)
        longer = torch.maximum(scale, (left / free.clamp_min(1e-15)).clamp_max(1))
        settled = not scale.is_cuda and bool((longer <= 1.0001 * scale).all())
        scale = longer
        if settled:
            break
    return torch.clamp(x + (delta * scale).view_as(x), low, high)


def _length(flat: Tensor) -> Tensor:
    return torch.linalg.vector_norm(flat, dim=1, keepdim=True)


def steepest_corner(x: Tensor, gradient: Tensor, norm: str, eps: float, bounds: tuple[float, float]) -> Tensor:
    """The point of ball and bounds that maximises ``<gradient, point - x>``, exactly; shape of ``x``.

    Where the loss is linear this is the strongest attack of radius ``eps``. Features without gradient stay.
    """
    low, high = bounds
    g = gradient.flatten(1)
    origin = x.flatten(1)
    room = torch.where(g > 0, high - origin, origin - low).clamp_min(0) * (g != 0)
    size = g.abs()
    match norm:
        case "linf":
            step = room.clamp_max(eps)
        case "l2":
            step = _l2_corner(size, room.clamp_max(eps), eps)
        case "l1":
            step = _l1_corner(size, room, eps)
        case _:
            k = min(int(eps), g.shape[1])
            top = (size * room).topk(k, dim=1).indices
            step = torch.zeros_like(room).scatter_(1, top, room.gather(1, top))
    return torch.clamp(x + (step * g.sign()).view_as(x), low, high)


def _l1_corner(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Spends eps on the largest gradients first, each as far as it has room."""
    order = size.argsort(dim=1, descending=True)
    wanted = room.gather(1, order)
    spent_before = wanted.cumsum(1) - wanted
    given = torch.minimum((eps - spent_before).clamp_min(0), wanted)
    return torch.zeros_like(room).scatter_(1, order, given)


def _l2_corner(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """``min(scale * size, room)`` with the scale at which its l2 norm is eps; sorts where features saturate."""
    size = size / size.amax(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
    ratio, order = (room / size.clamp_min(1e-12)).sort(dim=1)
    room2, size2 = room.gather(1, order).square(), size.gather(1, order).square()
    full = room2.cumsum(1)
    rest = size2.flip(1).cumsum(1).flip(1) - size2
    saturated = (full + ratio.square() * rest <= eps**2).sum(1, keepdim=True)
    full = torch.cat([torch.zeros_like(full[:, :1]), full], dim=1).gather(1, saturated)
    free = torch.cat([size2.sum(1, keepdim=True), rest], dim=1).gather(1, saturated)
    last = torch.cat([torch.zeros_like(ratio[:, :1]), ratio], dim=1).gather(1, saturated)
    scale = torch.maximum(last, ((eps**2 - full).clamp_min(0) / free.clamp_min(1e-30)).sqrt())
    return torch.minimum(scale * size, room)
