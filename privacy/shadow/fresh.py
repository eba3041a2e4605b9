"""Copies of a network to begin training from, in train mode: with weights drawn afresh, or with those that it has."""

from __future__ import annotations

import copy

import torch
from torch import nn

_WIDTH = 0.02


def fresh(module: nn.Module, seed: int) -> nn.Module:
    """A copy of ``module`` with all its weights drawn anew under ``seed``; the global generator is untouched.

    Layers follow their own scheme (``reset_parameters``). Parameters that belong to no such layer, such as a class
    token, are drawn as is usual for them, normal with deviation 0.02, and vectors that scale or shift become 1 or 0.
    Buffers that no layer resets, such as the mean and deviation of a normalisation, stay.
    """
    module = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in module.modules():
            _reset(layer)
    return module.train().requires_grad_(True)


def continued(module: nn.Module, seed: int, *, new_head: bool = False) -> nn.Module:
    """A copy of ``module`` with its weights, but for the last layer's under ``new_head``: these are drawn anew."""
    module = copy.deepcopy(module)
    if new_head:
        holding = [layer for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            _reset(holding[-1])
    return module.train().requires_grad_(True)


def _reset(layer: nn.Module) -> None:
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(layer, name, None)
        if callable(reset):
            reset()
            return
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.dim() > 1:
            parameter.normal_(0, _WIDTH)
        else:
            parameter.fill_(0.0 if "bias" in name else 1.0)
