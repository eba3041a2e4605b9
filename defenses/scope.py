"""Which part of a network is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from ..attacks.errors import UnsupportedError

Scope = Literal["all", "head"] | int
"""``all``, ``head`` (the last layer that has parameters), or the number of last blocks."""


def blocks(module: nn.Module) -> list[nn.Module]:
    """The parts of a network that have parameters, in order of registration: the children of the outermost module
    that has more than one such child (wrappers around a single network are looked through)."""
    children = [child for child in module.children() if _has_parameters(child)]
    if not children:
        return [module]
    return blocks(children[0]) if len(children) == 1 and not _own_parameters(module) else children


def head(module: nn.Module) -> nn.Module:
    """The last layer, in order of registration, that holds parameters itself.

    Raises:
        UnsupportedError: when the module has no parameters.
    """
    layers = [layer for layer in module.modules() if _own_parameters(layer)]
    if not layers:
        raise UnsupportedError(f"{type(module).__name__} has no parameters to train")
    return layers[-1]


def reset_head(module: nn.Module, seed: int) -> None:
    """Draws the head's weights afresh under ``seed`` with the layer's own scheme; the global generator is untouched.

    Raises:
        UnsupportedError: when the head cannot reset itself.
    """
    layer = head(module)
    reset = getattr(layer, "reset_parameters", None)
    if reset is None:
        raise UnsupportedError(f"the head is a {type(layer).__name__}, which has no reset_parameters()")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reset()


def in_scope(module: nn.Module, scope: Scope) -> list[nn.Module]:
    """The parts of ``module`` that ``scope`` trains.

    Raises:
        UnsupportedError: when there are fewer blocks than asked for.
    """
    if scope == "all":
        return [module]
    if scope == "head":
        return [head(module)]
    parts = blocks(module)
    if not 1 <= scope <= len(parts):
        raise UnsupportedError(f"scope is the last {scope} blocks, but {type(module).__name__} has {len(parts)}")
    return parts[-scope:]


@contextmanager
def training_scope(module: nn.Module, scope: Scope) -> Iterator[list[nn.Parameter]]:
    """Inside, only the parameters of ``scope`` (which are given) take gradients and only its layers are in train
    mode: a frozen BatchNorm keeps its statistics. On leaving, modes and gradient flags are as before."""
    parts = in_scope(module, scope)
    modes = {layer: layer.training for layer in module.modules()}
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    parameters = [parameter for part in parts for parameter in part.parameters() if flags[parameter] or scope != "all"]
    try:
        module.eval().requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for layer in (layer for part in parts for layer in part.modules()):
            own = list(layer.parameters(recurse=False))
            layer.training = not own or any(parameter.requires_grad for parameter in own)
        yield parameters
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def _own_parameters(layer: nn.Module) -> bool:
    return next(layer.parameters(recurse=False), None) is not None


def _has_parameters(layer: nn.Module) -> bool:
    return next(layer.parameters(), None) is not None
