"""Pruning of single weights: the smallest of the whole network become zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError
from .layers import share, weighted


@torch.no_grad()
def prune_weights(module: nn.Module, amount: float) -> dict[str, Tensor]:
    """Sets the ``amount`` of weights that are smallest in size to zero, in place, over all layers together.

    Magnitude pruning (Han et al., arXiv 1506.02626) of linear and convolutional weights; biases and norm layers stay.
    The tensors keep their size: less to store when compressed, nothing saved at run time without sparse kernels.

    Returns:
        Bool masks by layer name, true where a weight stays.

    Raises:
        UnsupportedError: when there is nothing to prune, or ``amount`` is no share.
    """
    layers = dict(weighted(module))
    if not layers:
        raise UnsupportedError(f"{type(module).__name__} has no linear or convolutional layer to prune")
    sizes = torch.cat([layer.weight.abs().flatten() for layer in layers.values()])
    stays = torch.ones_like(sizes, dtype=torch.bool)
    stays[sizes.argsort(stable=True)[: round(share("amount", amount) * len(sizes))]] = False
    masks = {}
    for (name, layer), kept in zip(
        layers.items(), stays.split([layer.weight.numel() for layer in layers.values()]), strict=True
    ):
        masks[name] = kept.view_as(layer.weight)
        layer.weight *= masks[name]
    return masks


@contextmanager
def zeros_kept(module: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, training leaves the pruned weights at zero: their gradients are, whatever the optimizer."""
    hooks = []
    for name, layer in weighted(module):
        if name in masks and layer.weight.requires_grad:
            hooks.append(layer.weight.register_hook(lambda gradient, mask=masks[name]: gradient * mask))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def sparsity(module: nn.Module) -> float:
    """Share of linear and convolutional weights that are exactly zero."""
    counts = [(int((layer.weight == 0).sum()), layer.weight.numel()) for _, layer in weighted(module)]
    return sum(zeros for zeros, _ in counts) / max(sum(total for _, total in counts), 1)
