"""Probes of the gradient: is there one, is it finite, and does the loss do what it says?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..losses import cross_entropy, margin
from .flag import Flag, flag, least_count
from .subject import Subject

_ZERO = 0.05
_OBEYED, _DISOBEDIENT = 0.1, 0.25
_ROUGH = 0.5
_LEAST_STEP = 1e-3
_SHORT = (1e-3, 1e-2)
"""Of the input range: over random changes as small as this the margin of a smooth model is all but straight."""

_DRAWS = 4
_ROUNDING = 1e-5


def gradient_flags(subject: Subject, *, repeatable: bool) -> Iterator[Flag]:
    """``no_gradient``; or ``non_finite_gradient``, ``zero_gradient``, ``saturated_softmax`` and the linearity flags.

    Args:
        repeatable: whether the same input gets the same answer, without which linearity has no meaning.
    """
    gradient, entropic = subject.gradient(margin), subject.gradient(cross_entropy)
    if gradient is None or entropic is None:
        yield flag("no_gradient", 1.0, 1.0, "The output does not depend on the input in a differentiable way.")
        return
    m = len(subject)
    broken = (~(gradient.isfinite() & entropic.isfinite())).flatten(1).any(1)
    if bool(broken.any()):
        count = int(broken.sum())
        measured = f"For {count} of {m} samples the gradient has NaN or infinite entries (flagged from 1)."
        yield flag("non_finite_gradient", count / m, 1 / m, measured)
    flat = (gradient.flatten(1) == 0).all(1)
    yield from _flat(flat, entropic)
    usable = ~(broken | flat)
    if repeatable and bool(usable.any()):
        yield from _misleading(subject, gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), usable)
        yield from _rough(subject, usable)


def _flat(flat: Tensor, entropic: Tensor) -> Iterator[Flag]:
    m = len(flat)
    least = least_count(m, _ZERO)
    zero = int(flat.sum())
    if zero >= min(least, m):
        measured = f"For {zero} of {m} samples the gradient of the margin is exactly zero (flagged from {least})."
        yield flag("zero_gradient", zero / m, least / m, measured)
    saturated = int(((entropic.flatten(1) == 0).all(1) & ~flat).sum())
    if saturated >= min(least, m):
        measured = (
            f"For {saturated} of {m} samples the gradient of the cross-entropy is exactly zero, that of the margin is "
            f"not (flagged from {least})."
        )
        yield flag("saturated_softmax", saturated / m, least / m, measured)


def _misleading(subject: Subject, gradient: Tensor, usable: Tensor) -> Iterator[Flag]:
    """Steps along the signs of the gradient: what part of the promised rise of the margin comes?"""
    span = subject.span
    obeyed, telling = torch.zeros_like(usable), torch.zeros_like(usable)
    for share, most in ((1 / 8, 0.01), (1 / 2, 0.05)):
        point = subject.moved(min(max(subject.step * share, _LEAST_STEP * span), most * span) * gradient.sign())
        promised, actual = ((point - subject.x) * gradient).flatten(1).sum(1), _rise(subject, point)
        telling |= torch.maximum(promised, actual.abs()) > _floor(subject)
        obeyed |= (actual >= _OBEYED * promised) & (actual <= promised / _OBEYED)
    n = int((usable & telling).sum())
    false = int((usable & telling & ~obeyed).sum())
    if false >= max(_DISOBEDIENT * n, 2):
        measured = (
            f"For {false} of {n} samples the margin rises along the gradient by less than a tenth or more than ten "
            "times of what the gradient promises (flagged from a quarter of the samples)."
        )
        yield flag("misleading_gradient", false / n, _DISOBEDIENT, measured)


def _rough(subject: Subject, usable: Tensor) -> Iterator[Flag]:
    bends = [(bend, step) for step in _SHORT if (bend := _bend(subject, usable, step)) is not None]
    if not bends:
        return
    value, step = max(bends)
    if value > _ROUGH:
        measured = (
            f"Over random changes of up to {step} of the input range the margin bends by {100 * value:.0f} % of its "
            f"own change (median over samples; flagged above {100 * _ROUGH:.0f} %)."
        )
        yield flag("rough_surface", value, _ROUGH, measured)


def _bend(subject: Subject, usable: Tensor, step: float) -> float | None:
    """Second difference of the margin over random changes, relative to the first; None where rounding drowns both."""
    streams, shape = subject.streams.fork(2), subject.x.shape[1:]
    second = torch.zeros(len(subject), device=usable.device)
    first = torch.zeros_like(second)
    for _ in range(_DRAWS):
        end = subject.moved(step * subject.span * (2 * streams.uniform(shape).to(subject.x) - 1))
        whole, half = _rise(subject, end), _rise(subject, (subject.x + end) / 2)
        second += (whole - 2 * half).abs().nan_to_num(nan=float("inf"))
        first += whole.abs()
    ratio = (second / first)[usable & (second + first > _DRAWS * _floor(subject))]
    return float(ratio.median()) if len(ratio) > 1 else None


def _rise(subject: Subject, point: Tensor) -> Tensor:
    """How much more the model errs ``(m,)`` at ``point`` than at ``x``, by the margin."""
    return margin(subject.forward(point), subject.y) - margin(subject.logits, subject.y)


def _floor(subject: Subject) -> Tensor:
    """Changes ``(m,)`` below this drown in rounding."""
    return _ROUNDING * subject.logits.abs().amax(1)
