"""The smallest step inside the bounds that reaches a hyperplane, in closed form.

Where the decision boundary is that hyperplane it is the smallest adversarial perturbation; DeepFool and FAB
(https://arxiv.org/abs/1907.02044) apply it to linearised models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..threat import Norm


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

    The gain is piecewise linear in t, with a kink where a feature meets its room: sort the kinks, find the piece.
    """
    kink, order = (room / speed.clamp_min(torch.finfo(speed.dtype).tiny)).sort(dim=1)
    full = (gain * room).gather(1, order).cumsum(1)
    slope = (gain * speed).gather(1, order)
    before = torch.cat([torch.zeros_like(need), full[:, :-1]], dim=1)
    remaining = slope.flip(1).cumsum(1).flip(1)
    reached = before + kink * remaining
    piece = (reached < need).sum(1, keepdim=True).clamp_max(gain.shape[1] - 1)
    tiny = torch.finfo(gain.dtype).tiny
    t = (need - before.gather(1, piece)) / remaining.gather(1, piece).clamp_min(tiny)
    return torch.minimum(t.clamp_min(0) * speed, room)


def _in_order(gain: Tensor, room: Tensor, need: Tensor, priority: Tensor) -> Tensor:
    """Uses up one feature's room after another, by ``priority``, until their gain is ``need``."""
    order = priority.argsort(dim=1, descending=True)
    gains, rooms = gain.gather(1, order), room.gather(1, order)
    full = gains * rooms
    missing = (need - (full.cumsum(1) - full)).clamp_min(0)
    used = torch.minimum(missing / gains.clamp_min(torch.finfo(gain.dtype).tiny), rooms)
    return torch.zeros_like(room).scatter_(1, order, used)
