"""Makes a network fit for per-sample gradients: layers that mix the samples of a batch are replaced."""

from __future__ import annotations

import copy
import math
import warnings

import torch
from opacus.validators import ModuleValidator
from torch import nn

from ..attacks.errors import UnsupportedError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def private_structure(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of ``module`` that DP-SGD can train, and a sentence for each kind of change.

    BatchNorm normalises each sample by the statistics of its batch, so no sample's gradient can be bounded by itself:
    it becomes GroupNorm (arXiv 1803.08494) with its learned scale and shift. Activations that work in place, which
    spoil the hooks for per-sample gradients, work out of place. Attention and recurrent layers become Opacus' own.
    A BatchNorm that is frozen (no parameter takes gradients) is a constant and stays.

    Raises:
        UnsupportedError: naming the layers that cannot be replaced.
    """
    module = copy.deepcopy(module)
    replaced = _replace_batch_norms(module)
    notes = [_batch_norm_note(replaced)] if replaced else []
    for layer in module.modules():
        if getattr(layer, "inplace", False) is True:
            layer.__dict__["inplace"] = False
    before = {name: type(layer).__name__ for name, layer in module.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = ModuleValidator.fix(module)
    for name, layer in module.named_modules():
        if name in before and type(layer).__name__ != before[name]:
            notes.append(f"{name}: {before[name]} was replaced by {type(layer).__name__}, with freshly drawn weights.")
    _refuse_unsupported(module)
    return module, tuple(notes)


def _replace_batch_norms(module: nn.Module) -> list[str]:
    names = [name for name, layer in module.named_modules() if _mixes_batch(layer)]
    for name in names:
        if not name:
            raise UnsupportedError("the model is a single BatchNorm layer: there is nothing to train privately")
        parent, _, child = name.rpartition(".")
        layer = module.get_submodule(name)
        setattr(module.get_submodule(parent), child, _group_norm(layer))
    return names


def _mixes_batch(layer: nn.Module) -> bool:
    if not isinstance(layer, _BATCH_NORMS):
        return False
    parameters = list(layer.parameters())
    return not parameters or any(parameter.requires_grad for parameter in parameters)


def _group_norm(layer: nn.Module) -> nn.GroupNorm:
    assert isinstance(layer, _BATCH_NORMS)
    groups = math.gcd(32, layer.num_features)
    norm = nn.GroupNorm(groups, layer.num_features, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        with torch.no_grad():
            norm.weight.copy_(layer.weight)
            norm.bias.copy_(layer.bias)
        norm.to(layer.weight.device, layer.weight.dtype)
    return norm.train(layer.training)


def _batch_norm_note(names: list[str]) -> str:
    return (
        f"{len(names)} BatchNorm layer{'s' if len(names) > 1 else ''} ({', '.join(names)}) became GroupNorm with the "
        "same scale and shift: BatchNorm mixes the samples of a batch, so the influence of one cannot be bounded. The "
        "running statistics are gone; accuracy starts lower and part of the loss against the base is due to this."
    )


def _refuse_unsupported(module: nn.Module) -> None:
    training = module.training
    errors = ModuleValidator.validate(module.train(), strict=False)
    module.train(training)
    if errors:
        raise UnsupportedError(f"DP-SGD cannot train this model: {'; '.join(str(error) for error in errors)}")
    for name, layer in module.named_modules():
        tracked = [key for key, buffer in layer.named_buffers(recurse=False) if key.startswith("running_")]
        own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
        if tracked and own:
            raise UnsupportedError(
                f"DP-SGD cannot train {name or type(layer).__name__}: it keeps statistics of the data "
                f"({', '.join(tracked)}), which no noise protects"
            )
