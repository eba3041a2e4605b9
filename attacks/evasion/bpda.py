"""Backward pass differentiable approximation: attacks through steps that have no useful gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError


def identity(x: Tensor) -> Tensor:
    """The usual approximation of preprocessing that leaves the image looking as it was."""
    return x


class BPDA(nn.Module):
    """https://arxiv.org/abs/1802.00420. Computes a non-differentiable step exactly, and differentiates another.

    Put it in place of the step: ``nn.Sequential(BPDA(jpeg), classifier)``. The forward pass is the step's own, so that
    what an attack finds holds for the original model.

    Args:
        step: the preprocessing, ``(n, ...) -> (n, ...)``; runs without gradients.
        approximation: what to differentiate instead, with outputs of the same shape.

    Raises:
        UnsupportedError: in the forward pass, when the two shapes differ.
    """

    def __init__(self, step: Callable[[Tensor], Tensor], approximation: Callable[[Tensor], Tensor] = identity) -> None:
        super().__init__()
        self.step = step
        self.approximation = approximation

    def forward(self, x: Tensor) -> Tensor:
        """``step(x)``, with the gradient of ``approximation(x)``."""
        with torch.no_grad():
            exact = self.step(x)
        smooth = self.approximation(x)
        if exact.shape != smooth.shape:
            raise UnsupportedError(
                f"BPDA: the step gives shape {tuple(exact.shape)}, its approximation {tuple(smooth.shape)}: "
                "give an approximation with outputs of the same shape"
            )
        return _Exchange.apply(smooth, exact.to(smooth.dtype))


class _Exchange(torch.autograd.Function):
    """Forwards the second argument, backwards to the first."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:  # noqa: ARG004
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad_outputs[0], None
