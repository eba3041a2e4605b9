"""CROWN: linear bounds passed backwards from a result to the input (arXiv 1811.00866)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...attacks.threat import Norm, Threat
from .intervals import Interval, propagate, through
from .operations import Affine, MaxPool, Monotone, Rectifier, Step, Sum

_NUMBERS = 1 << 21
"""Coefficients held at a time: 8 MB as float32, which is faster than more."""

_DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": float("inf")}


def ball_box(x: Tensor, threat: Threat) -> Interval:
    """The smallest box around the ball, inside the bounds."""
    low, high = threat.bounds
    return Interval((x - threat.eps).clamp_min(low), (x + threat.eps).clamp_max(high))


class Backward:
    """Bounds on the results of a network for inputs in a ball.

    Args:
        steps: the network.
        x: ``(n, ...)``, the middle of the ball.
        refine: bound what enters each nonlinearity backwards as well (CROWN); when false by intervals (CROWN-IBP,
            arXiv 1906.06316).
    """

    def __init__(self, steps: Sequence[Step], x: Tensor, threat: Threat, *, refine: bool) -> None:
        self.steps, self.x, self.threat = steps, x, threat
        self.boxes = [ball_box(x, threat)]
        if not refine:
            self.boxes = propagate(steps, self.boxes[0])
            return
        curved = {step.inputs[0] for step in steps if not isinstance(step.operation, Affine | Sum)}
        for place, step in enumerate(steps, 1):
            self.boxes.append(through(step.operation, [self.boxes[before] for before in step.inputs]))
            # What a nonlinearity gives is bounded by what it takes, which has been refined.
            if place in curved and isinstance(step.operation, Affine | Sum):
                self._refine(place)

    def _refine(self, place: int) -> None:
        """Bounds result ``place`` backwards too, where its sign is open; what is known of the rest stays."""
        box = self.boxes[place]
        n, shape = len(box.lower), box.lower.shape[1:]
        rectified = all(isinstance(s.operation, Rectifier) for s in self.steps if place in s.inputs)
        wanted = (box.lower < 0) & (box.upper > 0) if rectified else torch.ones_like(box.lower, dtype=torch.bool)
        units = wanted.flatten(1).any(0).nonzero().squeeze(1)
        lower, upper = (end.flatten(1).clone() for end in box)
        largest = max(known.lower[0].numel() for known in self.boxes[: place + 1])
        for part in units.split(max(1, _NUMBERS // (2 * n * largest))):
            pick = self.x.new_zeros(len(part), lower.shape[1])
            pick[torch.arange(len(part)), part] = 1
            both = torch.cat([pick, -pick]).expand(n, -1, -1).reshape(n, 2 * len(part), *shape)
            bound = self.lower_bound(place, both)
            lower[:, part] = lower[:, part].maximum(bound[:, : len(part)])
            upper[:, part] = upper[:, part].minimum(-bound[:, len(part) :])
        self.boxes[place] = Interval(lower.view_as(box.lower), upper.view_as(box.upper))

    def lower_bound(self, place: int, coefficients: Tensor) -> Tensor:
        """Lower bounds ``(n, m)`` on ``coefficients`` ``(n, m, *shape)`` times result ``place``."""
        pending = {place: coefficients}
        constant = coefficients.new_zeros(coefficients.shape[:2])
        for at in range(place, 0, -1):
            a = pending.pop(at, None)
            if a is None:
                continue
            step = self.steps[at - 1]
            passed, constants = self._pass(step, a)
            constant = constant + constants
            for before, share in zip(step.inputs, passed, strict=True):
                pending[before] = pending[before] + share if before in pending else share
        return constant + self._at_input(pending[0])

    def _pass(self, step: Step, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Coefficients of the step's inputs, and the constant ``(n, m)`` that they leave behind."""
        operation, box = step.operation, self.boxes[step.inputs[0]]
        if isinstance(operation, Sum):
            return (a, operation.sign * a), a.new_zeros(a.shape[:2])
        if isinstance(operation, Affine):
            shape = box.lower.shape[1:]
            back = operation.back(a.flatten(0, 1), shape).view(*a.shape[:2], *shape)
            offset = operation.apply(a.new_zeros(1, *shape))
            return (back,), (a * offset).flatten(2).sum(2)
        if isinstance(operation, Rectifier):
            return _past_rectifier(operation, box, a)
        if isinstance(operation, MaxPool):
            return _past_max_pool(operation, box, a)
        return _past_monotone(operation, box, a)

    def _at_input(self, a: Tensor) -> Tensor:
        """The least value ``(n, m)`` of ``a x'`` over the ball: the better of its norm and its box."""
        a = a.flatten(2)
        low, high = (end.flatten(1)[:, None] for end in self.boxes[0])
        in_box = (a.clamp_min(0) * low + a.clamp_max(0) * high).sum(2)
        norm = torch.linalg.vector_norm(a, _DUAL[self.threat.norm], dim=2)
        in_ball = (a * self.x.flatten(1)[:, None]).sum(2) - self.threat.eps * norm
        return in_box.maximum(in_ball)


def _past_rectifier(operation: Rectifier, box: Interval, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Above by the chord, below by the side with the smaller area: the steeper one where most of it lies above 0."""
    lower, upper = box
    below = operation.slope
    open_sign = (lower < 0) & (upper > 0)
    span = (upper - lower).clamp_min(torch.finfo(upper.dtype).tiny)
    steep = torch.where(open_sign, (upper - below * lower) / span, torch.where(lower >= 0, 1.0, below))
    lift = torch.where(open_sign, upper - steep * upper, 0.0)
    chosen = torch.where(open_sign, torch.where(upper > -lower, 1.0, below), steep)
    positive, negative = a.clamp_min(0), a.clamp_max(0)
    past = positive * chosen[:, None] + negative * steep[:, None]
    return (past,), (negative * lift[:, None]).flatten(2).sum(2)


def _past_monotone(operation: Monotone, box: Interval, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Between two parallel lines through the ends of the curve, as steep as it is at the flatter end.

    These functions are steepest in the middle, or towards one end: nowhere between are they flatter.
    """
    lower, upper = box
    low, high = operation.apply(lower), operation.apply(upper)
    slope = _slope(operation, lower).minimum(_slope(operation, upper))
    positive, negative = a.clamp_min(0), a.clamp_max(0)
    constant = positive * (low - slope * lower)[:, None] + negative * (high - slope * upper)[:, None]
    return (a * slope[:, None],), constant.flatten(2).sum(2)


def _slope(operation: Monotone, x: Tensor) -> Tensor:
    pull = torch.func.vjp(operation.apply, x)[1]
    return pull(torch.ones_like(x))[0]


def _past_max_pool(operation: MaxPool, box: Interval, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Below by the entry that is surely largest in its window, or is the best guess; above by it or by a constant."""
    (n, m), (c, h, w) = a.shape[:2], box.lower.shape[1:]
    lows, highs = operation.windows(box.lower), operation.windows(box.upper)
    best = lows.argmax(2, keepdim=True)
    others = highs.scatter(2, best, torch.finfo(highs.dtype).min).amax(2)
    sure = lows.gather(2, best)[:, :, 0] >= others  # (n, c, outputs)
    top = highs.amax(2)
    flat = a.flatten(3)  # (n, m, c, outputs)
    carried = flat.clamp_min(0) + flat.clamp_max(0) * sure[:, None]
    constant = (flat.clamp_max(0) * torch.where(sure, 0.0, top)[:, None]).flatten(2).sum(2)
    where = torch.arange(h * w, device=a.device, dtype=a.dtype).view(1, 1, h, w)
    index = operation.windows(where).expand(n, c, -1, -1).gather(2, best)[:, :, 0].long()
    back = a.new_zeros(n, m, c, h * w).scatter_add_(3, index[:, None].expand(-1, m, -1, -1), carried)
    return (back.view(n, m, c, h, w),), constant
