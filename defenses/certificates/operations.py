"""The kinds of layer that bounds pass through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Map = Callable[[Tensor], Tensor]
Transpose = Callable[[Tensor, torch.Size], Tensor]


@dataclass(frozen=True, slots=True)
class Affine:
    """``W x + b`` on each sample.

    Attributes:
        apply: the layer.
        magnitude: ``|W| r`` for a radius ``r >= 0``.
        transpose: ``(a, shape of the input) -> W^T a``; by automatic differentiation where None.
    """

    apply: Map
    magnitude: Map
    transpose: Transpose | None = None

    def back(self, a: Tensor, shape: torch.Size) -> Tensor:
        """``W^T a`` for ``a`` ``(m, *output)``; ``(m, *shape)``."""
        if self.transpose is not None:
            return self.transpose(a, shape)
        pull = torch.func.vjp(self.apply, a.new_zeros(len(a), *shape))[1]
        return pull(a)[0]


@dataclass(frozen=True, slots=True)
class Sum:
    """``first + sign * second`` of two earlier results."""

    sign: int


@dataclass(frozen=True, slots=True)
class Rectifier:
    """ReLU, or leaky ReLU with ``slope`` (0 to 1) below zero."""

    slope: float

    def apply(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, self.slope)


@dataclass(frozen=True, slots=True)
class Monotone:
    """An elementwise function that never falls and whose slope has one peak, such as a sigmoid or softplus."""

    apply: Map


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Max-pooling of ``(n, c, h, w)``."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def apply(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, self.kernel, self.stride, self.padding)

    def windows(self, x: Tensor) -> Tensor:
        """The entries that each output looks at: ``(n, c, window, outputs)``, minus infinity beyond the edge."""
        (py, px), (n, c) = self.padding, x.shape[:2]
        padded = functional.pad(x, (px, px, py, py), value=-torch.inf)
        # unfold multiplies by nothing but copies through zeros: infinities would become NaN.
        finite = padded.nan_to_num(neginf=torch.finfo(x.dtype).min)
        columns = functional.unfold(finite, self.kernel, stride=self.stride)
        return columns.view(n, c, self.kernel[0] * self.kernel[1], -1)


Operation = Affine | Sum | Rectifier | Monotone | MaxPool


@dataclass(frozen=True, slots=True)
class Step:
    """One operation and the places of the earlier results it takes; place 0 is the input."""

    operation: Operation
    inputs: tuple[int, ...]
    name: str
