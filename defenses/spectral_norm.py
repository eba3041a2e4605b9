"""Spectral normalisation: weights whose largest singular value is held at a chosen size (arXiv 1802.05957)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ..attacks.errors import UnsupportedError

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Scale(nn.Module):
    """Multiplies a normalised weight."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, weight: Tensor) -> Tensor:
        return self.size * weight


@contextmanager
def spectral_norm(module: nn.Module, size: float = 1.0) -> Iterator[None]:
    """Inside, each linear layer and convolution acts with its weight divided by its largest singular value and times
    ``size``; on leaving, that is its weight, and the structure is as before.

    A kernel ``(out, in, h, w)`` is taken as the matrix ``(out, in * h * w)``, as in the paper. The singular value
    comes from one power iteration per pass in train mode.

    Raises:
        UnsupportedError: when ``size`` is not above 0, or there is no such layer.
    """
    if not size > 0:
        raise UnsupportedError(f"the spectral norm is {size}: it must be above 0")
    layers = [
        layer for layer in module.modules() if isinstance(layer, _LAYERS) and not parametrize.is_parametrized(layer)
    ]
    if not layers:
        raise UnsupportedError(f"{type(module).__name__} has no linear layer or convolution to normalise")
    flags = [layer.weight.requires_grad for layer in layers]
    orders = [[name for name, _ in layer.named_parameters(recurse=False)] for layer in layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the power iteration starts at a random vector
        for layer in layers:
            parametrizations.spectral_norm(layer, n_power_iterations=1)
            parametrize.register_parametrization(layer, "weight", Scale(size))
    try:
        yield
    finally:
        for layer, flag, order in zip(layers, flags, orders, strict=True):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            layer.weight.requires_grad_(flag)
            for name in order:  # the weight came back behind the bias
                parameter = layer.get_parameter(name)
                delattr(layer, name)
                layer.register_parameter(name, parameter)


def largest_singular_value(weight: Tensor) -> float:
    """Of a weight ``(out, ...)`` as the matrix ``(out, rest)``."""
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1), ord=2))
