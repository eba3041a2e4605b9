"""What a training step minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Moment(NamedTuple):
    """Where in the training a batch stands.

    Attributes:
        progress: share of all steps already done, in 0..1.
        generator: source of the batch's random numbers, on the CPU.
    """

    progress: float
    generator: torch.Generator


class BatchLoss(NamedTuple):
    """Scalar loss to differentiate, and how many of the batch's training inputs were classified correctly."""

    loss: Tensor
    correct: Tensor


class Objective(Protocol):
    """The loss of one batch ``x (b, ...)``, ``y`` int64 ``(b,)``; the module comes in train mode and stays in it.

    An objective may have an attribute ``replays``: how many steps the loop makes on each batch (default 1).
    """

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss: ...


@runtime_checkable
class Stateful(Protocol):
    """An objective that remembers something between batches, which a resumed training must find again."""

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Cross-entropy.

    Args:
        label_smoothing: share of the label's mass that is spread over all classes (arXiv 1512.00567), in 0..1.
        class_weights: one weight per class, for unbalanced data; see :func:`balanced_weights`.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        del moment
        logits = module(x)
        return BatchLoss(self.loss(logits, y), (logits.argmax(1) == y).sum())

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean over the batch of ``logits (b, k)``."""
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return cross_entropy(logits, y, weight=weight, label_smoothing=self.label_smoothing)


def balanced_weights(y: Tensor, classes: int) -> tuple[float, ...]:
    """Class weights ``n / (k * count)``, with which every class weighs the same; a class without samples gets 1."""
    counts = torch.bincount(y, minlength=classes)
    return tuple((len(y) / (classes * counts.clamp_min(1)).double()).where(counts > 0, 1.0).tolist())
