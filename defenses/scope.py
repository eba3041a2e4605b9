"""Which part of a network is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from ..attacks.errors import UnsupportedError
from .lora import LoRA, adapted

Part = Literal["all", "head"] | int
Scope = Part | LoRA
"""``all``, ``head`` (the last layer that has parameters), the number of last blocks, or low-rank adapters."""

HeadScheme = Literal["default", "zeros", "normal", "xavier_uniform", "kaiming_normal", "orthogonal"]
"""How a fresh head is drawn: ``default`` as the layer does itself, ``normal`` with standard deviation 0.02 (as BERT's);
all others set the bias to 0. With ``zeros`` the first steps leave the layers before the head nearly as they are
(arXiv 2202.10054)."""

_SCHEMES: dict[HeadScheme, Callable[[torch.Tensor], object]] = {
    "zeros": nn.init.zeros_,
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "xavier_uniform": nn.init.xavier_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
}


def blocks(module: nn.Module) -> list[nn.Module]:
    """The parts of a network that have parameters, in order of registration: the children of the outermost module
    that has more than one such child (wrappers around a single network are looked through). A part with a list of
    layers in it, as transformers have, counts by these layers."""
    children = [child for child in module.children() if _has_parameters(child)]
    if not children:
        return [module]
    if len(children) == 1 and not _own_parameters(module) and not isinstance(module, nn.ModuleList):
        return blocks(children[0])
    return [part for child in children for part in _layers(child)]


def _layers(part: nn.Module) -> list[nn.Module]:
    """The part itself, or what it is made of where that is a list of layers with others before and after."""
    if _is_stack(part):
        return [layer for layer in part.children() if _has_parameters(layer)]
    if _own_parameters(part) or not any(_is_stack(inside) for inside in part.modules()):
        return [part]
    return [layer for child in part.children() if _has_parameters(child) for layer in _layers(child)]


def _is_stack(part: nn.Module) -> bool:
    """Whether this is a list of layers of one kind; branches that run side by side mostly differ."""
    return isinstance(part, nn.ModuleList) and len({type(layer) for layer in part}) == 1


def head(module: nn.Module) -> nn.Module:
    """The last layer, in order of registration, that holds parameters itself.

    Raises:
        UnsupportedError: when the module has no parameters.
    """
    layers = [layer for layer in module.modules() if _own_parameters(layer)]
    if not layers:
        raise UnsupportedError(f"{type(module).__name__} has no parameters to train")
    return layers[-1]


def reset_head(module: nn.Module, seed: int, scheme: HeadScheme = "default") -> None:
    """Draws the head's weights afresh under ``seed``; the global generator is untouched.

    Raises:
        UnsupportedError: when the head cannot be drawn afresh that way.
    """
    layer = head(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if scheme == "default":
            reset = getattr(layer, "reset_parameters", None)
            if reset is None:
                raise UnsupportedError(f"the head is a {type(layer).__name__}, which has no reset_parameters()")
            reset()
            return
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
            raise UnsupportedError(f"the head is a {type(layer).__name__}: scheme {scheme} needs a weight matrix")
        _SCHEMES[scheme](weight)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)


def in_scope(module: nn.Module, scope: Part) -> list[nn.Module]:
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
    mode: a frozen BatchNorm keeps its statistics. On leaving, modes and gradient flags are as before, and adapters are
    merged into the weights."""
    if isinstance(scope, LoRA):
        last = head(module)
        with _as_found(module), adapted(module, scope, last) as adapters:
            yield _only([module], [*adapters, *last.parameters()], module)
        return
    parts = in_scope(module, scope)
    parameters = [part for chosen in parts for part in chosen.parameters() if part.requires_grad or scope != "all"]
    with _as_found(module):
        yield _only(parts, parameters, module)


@contextmanager
def _as_found(module: nn.Module) -> Iterator[None]:
    modes = {layer: layer.training for layer in module.modules()}
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def _only(parts: list[nn.Module], parameters: list[nn.Parameter], module: nn.Module) -> list[nn.Parameter]:
    """Lets only ``parameters`` take gradients; puts layers of ``parts`` into train mode, but not frozen ones."""
    module.eval().requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for layer in (layer for part in parts for layer in part.modules()):
        own = list(layer.parameters(recurse=False))
        layer.training = not own or any(parameter.requires_grad for parameter in own)
    return parameters


def _own_parameters(layer: nn.Module) -> bool:
    return next(layer.parameters(recurse=False), None) is not None


def _has_parameters(layer: nn.Module) -> bool:
    return next(layer.parameters(), None) is not None
