"""Probes that only look at what the model answers: is it a function of the input, and are these logits?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .flag import Flag, flag, least_count
from .subject import Subject

_ROUNDING = 1e-4
"""Relative to the largest logit: kernels may add up in another order for another batch."""

_BATCH = 1e-3
_DISTINCT = 0.5


def output_flags(subject: Subject) -> Iterator[Flag]:
    """``gradient_inside``, ``randomised``, ``batch_dependent``, ``probabilities`` and ``quantised_logits``."""
    yield from _gradient_inside(subject)
    again = subject.forward(subject.x)
    changed = int((_difference(again, subject.logits) > _ROUNDING).sum())
    if changed:
        measured = f"Two passes over the same {len(subject)} inputs disagree on {changed} of them (flagged from 1)."
        yield flag("randomised", changed / len(subject), 1 / len(subject), measured)
    else:
        yield from _batch_dependent(subject)
    yield from _probabilities(subject)
    yield from _quantised(subject)


def _gradient_inside(subject: Subject) -> Iterator[Flag]:
    """A backward pass reads what a forward pass has saved; here nobody but the model can have made one."""
    used = 0

    def read(saved: Tensor) -> Tensor:
        nonlocal used
        used += 1
        return saved

    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, read):
            subject.forward(subject.x[:1])
    except RuntimeError as error:  # torch.func refuses to differentiate under such hooks
        if "saved tensor hooks" not in str(error):
            raise
        used = 1
    if used:
        measured = "The model runs a backward pass while it predicts (flagged when it does)."
        yield flag("gradient_inside", 1.0, 1.0, measured)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference ``(m,)`` of two logits ``(m, k)``, relative to the largest of them; NaN counts as infinite."""
    scale = b.abs().amax(1).clamp_min(1e-12)
    return ((a - b).abs().amax(1) / scale).nan_to_num(nan=float("inf"))


def _batch_dependent(subject: Subject) -> Iterator[Flag]:
    """The first half of the samples again, among random inputs instead of the second half."""
    low, high = subject.threat.bounds
    half = (min(len(subject), subject.batch_size) + 1) // 2
    noise = low + (high - low) * subject.streams.fork(1).uniform(subject.x.shape[1:]).to(subject.x)
    mixed = subject.forward(torch.cat([subject.x[:half], noise[:half]]))[:half]
    value = float(_difference(mixed, subject.logits[:half]).amax())
    if value > _BATCH:
        flips = int((mixed.argmax(1) != subject.y[:half]).sum())
        measured = (
            f"Next to other inputs the logits of a sample change by up to {value:.2g} of their size (flagged above "
            f"{_BATCH}), and {flips} of {half} predictions."
        )
        yield flag("batch_dependent", value, _BATCH, measured)


def _probabilities(subject: Subject) -> Iterator[Flag]:
    logits = subject.logits
    like = (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)
    if bool(like.all()):
        measured = f"On all {len(subject)} inputs the outputs lie in 0..1 and add up to 1 (flagged when on all)."
        yield flag("probabilities", 1.0, 1.0, measured)


def _quantised(subject: Subject) -> Iterator[Flag]:
    """The share of distinct values in the most varied column, over distinct inputs."""
    first = _first_of_each(subject.x.flatten(1))
    logits = subject.logits[first]
    if len(logits) < 8:  # too few to tell
        return
    distinct = max(len(column.unique()) for column in logits.T)
    value = distinct / len(logits)
    if value <= _DISTINCT:
        measured = (
            f"{len(logits)} different inputs give only {distinct} different values of any one logit (flagged from "
            f"{least_count(len(logits), _DISTINCT)} down)."
        )
        yield flag("quantised_logits", value, _DISTINCT, measured)


def _first_of_each(rows: Tensor) -> Tensor:
    """Positions of the distinct rows, each where it comes first."""
    groups = rows.unique(dim=0, return_inverse=True)[1]
    return torch.tensor([int((groups == group).nonzero()[0]) for group in range(int(groups.max()) + 1)])


def mode_flags(module: nn.Module, subject: Subject) -> Iterator[Flag]:
    """``train_mode``: whether the module, as it was handed over, answers otherwise than in eval mode."""
    training = sorted({type(part).__name__ for part in module.modules() if part.training})
    if not training or len(subject) < 2:  # batch norm cannot train on one
        return
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        as_found = subject.forward(subject.x)
    finally:  # a pass in train mode moves running statistics
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(kept[name])
    value = float(_difference(as_found, subject.logits).amax())
    if value > _BATCH:
        flips = int((as_found.argmax(1) != subject.y).sum())
        measured = (
            f"The model was handed over in train mode, where logits differ by up to {value:.2g} of their size (flagged "
            f"above {_BATCH}), and {flips} of {len(subject)} predictions."
        )
        yield flag("train_mode", value, _BATCH, measured)
