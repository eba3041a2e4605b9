"""The smallest step inside the bounds that reaches a hyperplane, in closed form.

Where the decision boundary is that hyperplane it is the smallest adversarial perturbation; DeepFool and FAB
(https://arxiv.org/abs/1907.02044) apply it to linearised models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..threat import Norm

_ROUNDS = 30
"""Of Newton's method, at most; a trained network's gradients on images take three to six."""

_FAR = 1e18
"""A multiple at which every feature with a gradient has used up its room."""


def step_to_hyperplane(x: Tensor, normal: Tensor, gap: Tensor, norm: Norm, bounds: tuple[float, float]) -> Tensor:
    """The smallest ``step`` with ``<normal, step> = gap`` and ``x + step`` inside the bounds; shape of ``x``.

    Where the bounds leave no such step, the one that comes closest to the hyperplane. Up to rounding.

    Args:
        x: ``(n, ...)``, inside the bounds.
        normal: ``(n, ...)``.
        gap: ``(n,)``, of either sign.
        norm: what makes a step small.
        bounds: of every feature.
    """
    low, high = bounds
    flat = x.flatten(1)
    uphill = (normal.flatten(1) * gap.sign()[:, None]).nan_to_num(nan=0.0)
    scale = uphill.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    gain = uphill.abs() / scale
    room = torch.where(uphill > 0, high - flat, flat - low).clamp_min(0)
    need = gap.abs()[:, None] / scale
    match norm:
        case "linf":
            size = _together(gain, torch.ones_like(gain), room, need)
        case "l2":
            size = _together(gain, gain, room, need)
        case "l1":
            size = _in_order(gain, room, need, gain)
        case "l0":
            size = _in_order(gain, room, need, gain * room)
    return (size * uphill.sign()).view_as(x)


def _together(gain: Tensor, speed: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """``min(t * speed, room)`` with the smallest ``t`` whose gain is ``need`` ``(n, 1)``; all tensors ``(n, d)``.

    The gain is concave and piecewise linear in t, with a kink where a feature meets its room. Newton's method comes
    from below and ends on the right piece, in a few rounds where sorting the kinks would cost ten times as much.
    """
    weight = gain * speed
    tiny = torch.finfo(gain.dtype).tiny
    t = need / weight.sum(1, keepdim=True).clamp_min(tiny)
    for _ in range(_ROUNDS):
        wanted = t * speed
        full = wanted >= room
        missing = need - (gain * torch.minimum(wanted, room)).sum(1, keepdim=True)
        slope = weight.masked_fill(full, 0).sum(1, keepdim=True)
        further = torch.where(slope > 0, missing / slope.clamp_min(tiny), _FAR * (missing > 0)).clamp_min(0)
        t = (t + further).clamp_max(_FAR)
        if not t.is_cuda and bool((further <= 1e-6 * t).all()):
            break
    return torch.minimum(t * speed, room)


def _in_order(gain: Tensor, room: Tensor, need: Tensor, priority: Tensor) -> Tensor:
    """Uses up one feature's room after another, by ``priority``, until their gain is ``need``."""
    order = priority.argsort(dim=1, descending=True)
    gains, rooms = gain.gather(1, order), room.gather(1, order)
    full = gains * rooms
    missing = (need - (full.cumsum(1) - full)).clamp_min(0)
    used = torch.minimum(missing / gains.clamp_min(torch.finfo(gain.dtype).tiny), rooms)
    return torch.zeros_like(room).scatter_(1, order, used)
