"""Interval bound propagation: the box that each layer's results stay in (arXiv 1810.12715)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .operations import Affine, Operation, Step, Sum


class Interval(NamedTuple):
    """Lower and upper ends, both ``(n, ...)``."""

    lower: Tensor
    upper: Tensor

    def meet(self, other: Interval) -> Interval:
        """What lies in both."""
        return Interval(self.lower.maximum(other.lower), self.upper.minimum(other.upper))


def propagate(steps: Sequence[Step], box: Interval) -> list[Interval]:
    """A box for each result, the input's first."""
    boxes = [box]
    for step in steps:
        boxes.append(through(step.operation, [boxes[place] for place in step.inputs]))
    return boxes


def through(operation: Operation, boxes: Sequence[Interval]) -> Interval:
    """The box of an operation's result when its inputs lie in ``boxes``."""
    lower, upper = boxes[0]
    if isinstance(operation, Affine):
        middle, radius = operation.apply((lower + upper) / 2), operation.magnitude((upper - lower) / 2)
        return Interval(middle - radius, middle + radius)
    if isinstance(operation, Sum):
        other = boxes[1] if operation.sign > 0 else Interval(-boxes[1].upper, -boxes[1].lower)
        return Interval(lower + other.lower, upper + other.upper)
    return Interval(operation.apply(lower), operation.apply(upper))  # the others never fall
