"""Several models of one architecture, called as one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.functional import cross_entropy

from ...attacks.errors import UnsupportedError
from .layers import STACKED, StackedConv, StackedLayer

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)

How = Literal["auto", "products", "vmap", "turn"]


class Stack(Protocol):
    """K models as one: ``(K, b, ...)`` in, ``(K, b, classes)`` out, each model on its own samples.

    Attributes:
        how: products, vmap or turn.
    """

    how: str

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def parameters(self) -> list[Tensor]:
        """Those that take gradients."""
        ...

    def train(self, mode: bool = True) -> None:
        """Puts the layers into train mode that were in it when the stack was made; with ``mode`` false, none."""
        ...

    def models(self) -> list[nn.Module]:
        """The models themselves, with the weights that they have now."""
        ...


class Modes:
    """Which layers of ``model`` are trained: those that are in train mode now. Frozen ones are not, so that their
    statistics stay as they are."""

    def __init__(self, model: nn.Module) -> None:
        self._trained = {name for name, layer in model.named_modules() if layer.training}

    def apply(self, model: nn.Module, train: bool) -> None:
        """Train mode for these layers of a network of the same structure, or for none."""
        for name, layer in model.named_modules():
            layer.training = train and name in self._trained


class Products:
    """Layers with weights are replaced by stacked ones, see :mod:`.layers`: one batched product serves all models.

    Args:
        channels_last: has pictures go from convolution to pooling with their channels last in memory, which is faster
            on a CPU but breaks networks that ask for a view of them.
    """

    how = "products"

    def __init__(self, models: Sequence[nn.Module], *, channels_last: bool = False) -> None:
        self._models, self._modes = list(models), Modes(models[0])
        self.module = copy.deepcopy(models[0])
        self._stacked: dict[str, StackedLayer] = {}
        if len(list(self.module.named_parameters(remove_duplicate=False))) != len(list(self.module.parameters())):
            raise UnsupportedError("layers share weights")
        before: StackedLayer | None = None
        for name, layer in list(self.module.named_modules()):
            if isinstance(layer, _POOLS) and isinstance(before, StackedConv):
                before.channels_last = channels_last
            if next(layer.parameters(recurse=False), None) is None and type(layer) not in STACKED:
                continue
            if type(layer) not in STACKED or layer._forward_hooks or layer._forward_pre_hooks:
                raise UnsupportedError(f"{name} ({type(layer).__name__}) cannot be stacked")
            before = STACKED[type(layer)]([model.get_submodule(name) for model in models])
            self._replace(name, before)

    def _replace(self, name: str, layer: StackedLayer) -> None:
        self._stacked[name] = layer
        if not name:
            self.module = layer
            return
        parent, _, child = name.rpartition(".")
        setattr(self.module.get_submodule(parent), child, layer)

    def __call__(self, x: Tensor, /) -> Tensor:
        return self.module(x.flatten(0, 1)).view(len(self._models), x.shape[1], -1)

    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> None:
        for model in (self.module, *self._models):
            self._modes.apply(model, mode)

    def models(self) -> list[nn.Module]:
        for k, model in enumerate(self._models):
            for name, layer in self._stacked.items():
                layer.give_back(k, model.get_submodule(name))
        return self._models


class Vmap:
    """``torch.func``: the forward of one model, vectorised over stacked weights."""

    how = "vmap"

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models, self._modes = list(models), Modes(models[0])
        self.module = copy.deepcopy(models[0])
        self._parameters, self._buffers = stack_module_state(self._models)

    def __call__(self, x: Tensor, /) -> Tensor:
        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], part: Tensor) -> Tensor:
            return functional_call(self.module, (parameters, buffers), (part,))

        return torch.vmap(one, randomness="different")(self._parameters, self._buffers, x)

    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]

    def train(self, mode: bool = True) -> None:
        for model in (self.module, *self._models):
            self._modes.apply(model, mode)

    def models(self) -> list[nn.Module]:
        for k, model in enumerate(self._models):
            state = {name: value[k].detach() for name, value in (*self._parameters.items(), *self._buffers.items())}
            model.load_state_dict(state, strict=False)
        return self._models


class InTurn:
    """One model after the other: slow, and right for any architecture."""

    how = "turn"

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models, self._modes = list(models), Modes(models[0])

    def __call__(self, x: Tensor, /) -> Tensor:
        return torch.stack([model(part) for model, part in zip(self._models, x, strict=True)])

    def parameters(self) -> list[Tensor]:
        return [parameter for model in self._models for parameter in model.parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> None:
        for model in self._models:
            self._modes.apply(model, mode)

    def models(self) -> list[nn.Module]:
        return self._models


Make = Callable[[Sequence[nn.Module]], Stack]


def _ways(model: nn.Module) -> Iterator[tuple[str, Make]]:
    """What to try, the fastest first."""
    if any(isinstance(layer, _POOLS) for layer in model.modules()) and all(
        parameter.device.type == "cpu" for parameter in model.parameters()
    ):
        yield "products", partial(Products, channels_last=True)
    yield "products", Products
    yield "vmap", Vmap


def stack(models: Sequence[nn.Module], probe: Tensor, how: How = "auto") -> Stack:
    """The fastest stack of ``models`` that computes what they compute.

    Batched products are tried first, then ``vmap``; each must give the models' own logits and gradients on ``probe``
    ``(b, ...)``, b at least 2, to float tolerance. Networks that mix the samples of a batch in their own code, or have
    layers that neither way knows (recurrent ones), are left to run in turn.

    Raises:
        UnsupportedError: when ``how`` names a way that fails for this architecture, with the reason.
    """
    if how == "turn" or (how == "auto" and len(models) == 1):
        return InTurn(models)
    problem: str | None = None
    for _, make in (way for way in _ways(models[0]) if how in ("auto", way[0])):
        try:
            problem = _difference(make, models, probe)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AttributeError) as error:
            problem = str(error).partition("\n")[0]
        if problem is None:
            return make(models)
    if how != "auto":
        raise UnsupportedError(f"these models cannot be trained side by side by {how}: {problem}")
    return InTurn(models)


def _difference(make: Make, models: Sequence[nn.Module], probe: Tensor) -> str | None:
    """What two models get in turn against what a stack of them gets; None where they agree."""
    pair = [copy.deepcopy(model) for model in models[:2]]
    stacked, alone = make([copy.deepcopy(model) for model in pair]), InTurn(pair)
    # Different samples for each model, so that mixing them up shows.
    x = torch.stack([probe, probe.flip(0) / 2]) if probe.is_floating_point() else torch.stack([probe, probe.roll(1, 1)])
    for mode in (True, False):
        for side in (stacked, alone):
            side.train(mode)
        with _without_dropout(*pair, getattr(stacked, "module", pair[0])):
            logits = [side(x) for side in (alone, stacked)]
        if logits[0].shape != logits[1].shape or not torch.allclose(*logits, rtol=1e-3, atol=1e-4):
            return "its logits differ from those of the models by themselves"
        gradients = [_gradients(side, out) for side, out in zip((alone, stacked), logits, strict=True)]
        if not torch.allclose(*gradients, rtol=1e-3):
            return "its gradients differ from those of the models by themselves"
    return None


def _gradients(side: Stack, logits: Tensor) -> Tensor:
    """The l2 norm of the gradient of each model's loss, which tells all weights at once whatever their layout."""
    y = torch.arange(logits.shape[1], device=logits.device) % logits.shape[2]
    norms = []
    for part in logits:
        loss = cross_entropy(part, y)
        found = torch.autograd.grad(loss, side.parameters(), retain_graph=True, allow_unused=True)
        norms.append(torch.stack([g.norm() for g in found if g is not None]).norm())
    return torch.stack(norms)


@contextmanager
def _without_dropout(*modules: nn.Module) -> Iterator[None]:
    """Random layers would make even equal models differ."""
    everything = (layer for module in modules for layer in module.modules())
    layers = [layer for layer in everything if isinstance(layer, nn.modules.dropout._DropoutNd)]
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
