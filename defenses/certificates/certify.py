"""Proofs that no input within a radius changes the class, by bounds on the margins of the logits."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError
from ...attacks.models import attacking
from ...attacks.threat import Threat
from .intervals import Interval, propagate
from .linear_bounds import Backward, ball_box
from .operations import Affine, Step
from .tracing import steps_of

Method = Literal["ibp", "crown_ibp", "crown"]
METHODS: tuple[Method, ...] = get_args(Method)

_BATCH: dict[Method, int] = {"ibp": 128, "crown_ibp": 16, "crown": 2}

_ROUNDING = 1e-5
"""Of the largest number that the margins are made of: what float32 may have lost on the way."""


@torch.no_grad()
def output_bounds(module: nn.Module, x: Tensor, threat: Threat, method: Method = "crown") -> Interval:
    """Boxes that hold the logits for every input in the ball: two tensors ``(n, k)``.

    Up to rounding: compute in float64 where the last digits matter.

    Args:
        module: a feed-forward or convolutional network in eval mode, in the dtype and on the device of ``x``.
        x: ``(n, ...)``, the middles of the balls.
        threat: linf, l2 or l1; for l2 and l1 ``ibp`` and ``crown_ibp`` bound hidden layers over the box around the
            ball.
        method: ``ibp`` (arXiv 1810.12715), ``crown_ibp`` (arXiv 1906.06316) or ``crown`` (arXiv 1811.00866), each
            at least as tight as the one before on the logits, and slower.

    Raises:
        UnsupportedError: for a layer, norm or method that is not known, naming it.
    """
    steps = _steps(module, threat, method)
    with attacking(module):
        boxes = propagate(steps, ball_box(x, threat))
        if method == "ibp":
            return boxes[-1]
        k = boxes[-1].lower.shape[1]
        eye = torch.eye(k, dtype=x.dtype, device=x.device)
        bound = _backward_bounds(steps, x, threat, torch.cat([eye, -eye]).expand(len(x), -1, -1), method)
        return boxes[-1].meet(Interval(bound[:, :k], -bound[:, k:]))


@torch.no_grad()
def margin_bounds(module: nn.Module, x: Tensor, y: Tensor, threat: Threat, method: Method = "crown") -> Tensor:
    """Lower bounds ``(n, k - 1)`` on the logit of ``y`` minus each other logit, for every input in the ball.

    The difference is taken inside the last layer, which is tighter than the difference of two logits' bounds.
    See :func:`output_bounds`.
    """
    steps = _steps(module, threat, method)
    with attacking(module):
        k = propagate(steps, ball_box(x, threat))[-1].lower.shape[1]
        pick = _differences(y, k, x)
        loose = _interval_margins(steps, ball_box(x, threat), pick)
        return loose if method == "ibp" else loose.maximum(_backward_bounds(steps, x, threat, pick, method))


@torch.no_grad()
def certified(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    method: Method = "crown",
    *,
    batch_size: int | None = None,
) -> Tensor:
    """Bool ``(n,)``: whether ``module`` provably gives ``y`` for every input in the ball.

    The bound on each margin must exceed 0 by what rounding may have lost. False means unproven, not broken.

    Args:
        x, y: ``(n, ...)`` within the bounds, int64 ``(n,)``, on the module's device.
        batch_size: samples bounded at a time; None: 128 for ibp, 16 for crown_ibp, 2 for crown, whose hidden units
            are bounded for all samples of a batch where the sign is open for one.
    """
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    proven = []
    size = batch_size or _BATCH[method]
    for inputs, labels in zip(x.split(size), y.split(size), strict=True):
        bounds = margin_bounds(module, inputs, labels, threat, method)
        with attacking(module):
            scale = module(inputs).abs().amax(1).clamp_min(1)
        proven.append(bounds.amin(1) > _ROUNDING * scale)
    return torch.cat(proven)


def _steps(module: nn.Module, threat: Threat, method: Method) -> tuple[Step, ...]:
    if method not in METHODS:
        raise UnsupportedError(f"method is {method!r}: choose one of {', '.join(METHODS)}")
    if threat.norm == "l0":
        raise UnsupportedError("bounds know the norms linf, l2 and l1, not l0")
    with attacking(module):
        return steps_of(module)


def _backward_bounds(steps: tuple[Step, ...], x: Tensor, threat: Threat, pick: Tensor, method: Method) -> Tensor:
    """Lower bounds ``(n, m)`` on ``pick`` ``(n, m, k)`` times the logits; of ``crown`` and ``crown_ibp`` the better.

    Tighter boxes may turn the slope chosen for a ReLU, so neither of the two always wins.
    """
    bound = Backward(steps, x, threat, refine=False).lower_bound(len(steps), pick)
    if method == "crown_ibp":
        return bound
    return bound.maximum(Backward(steps, x, threat, refine=True).lower_bound(len(steps), pick))


def _differences(y: Tensor, k: int, x: Tensor) -> Tensor:
    """``(n, k - 1, k)``: rows that take each other logit from that of ``y``."""
    others = torch.arange(k, device=y.device).expand(len(y), k)
    others = others[others != y[:, None]].view(len(y), k - 1)
    pick = torch.zeros(len(y), k - 1, k, dtype=x.dtype, device=x.device)
    pick.scatter_(2, others[:, :, None], -1.0)
    pick.scatter_(2, y[:, None, None].expand(-1, k - 1, 1), 1.0)
    return pick


def _interval_margins(steps: tuple[Step, ...], box: Interval, pick: Tensor) -> Tensor:
    """Margins bounded over the box of what the last affine layers take."""
    boxes = propagate(steps, box)
    place, a, constant = len(steps), pick, pick.new_zeros(pick.shape[:2])
    while place > 0 and isinstance(steps[place - 1].operation, Affine):
        step = steps[place - 1]
        operation = step.operation
        assert isinstance(operation, Affine)
        shape = boxes[step.inputs[0]].lower.shape[1:]
        constant = constant + (a * operation.apply(a.new_zeros(1, *shape))).flatten(2).sum(2)
        a = operation.back(a.flatten(0, 1), shape).view(*a.shape[:2], *shape)
        place = step.inputs[0]
    low, high = (end.flatten(1)[:, None] for end in boxes[place])
    a = a.flatten(2)
    return constant + (a.clamp_min(0) * low + a.clamp_max(0) * high).sum(2)
