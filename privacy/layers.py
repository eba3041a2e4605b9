"""Makes a network fit for per-sample gradients: layers that mix the samples of a batch are replaced."""

from __future__ import annotations

import copy
import math

import torch
from opacus.validators import ModuleValidator
from torch import nn

from ..attacks.errors import UnsupportedError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def private_structure(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of ``module`` that DP-SGD can train, and a sentence for each kind of change.

    BatchNorm normalises each sample by the statistics of its batch, so no sample's gradient can be bounded by itself:
    it becomes GroupNorm (arXiv 1803.08494) with its learned scale and shift. Activations that work in place, which
    spoil the hooks for per-sample gradients, work out of place. Recurrent layers become Opacus' own.
    A BatchNorm that is frozen (no parameter takes gradients) is a constant and stays.

    Raises:
        UnsupportedError: naming the layers that cannot be replaced.
    """
    module = copy.deepcopy(module)
    notes = []
    batch_norms = [name for name, layer in module.named_modules() if _mixes_batch(layer)]
    for name in batch_norms:
        _replace(module, name, _group_norm(module.get_submodule(name)))
    if batch_norms:
        notes.append(_batch_norm_note(batch_norms))
    for name, layer in list(module.named_modules()):
        if isinstance(layer, _RECURRENT) and _takes_gradients(layer):
            if not layer.batch_first:
                raise UnsupportedError(
                    f"DP-SGD cannot train {name or type(layer).__name__}: with the batch in its second dimension "
                    "gradients cannot be told apart by record; build it with batch_first=True"
                )
            _replace(module, name, ModuleValidator.FIXERS[type(layer)](layer))
            notes.append(f"{name}: {type(layer).__name__} became Opacus' own, with the same weights.")
    for layer in module.modules():
        if getattr(layer, "inplace", False) is True:
            layer.__dict__["inplace"] = False
    _refuse_unsupported(module)
    return module, tuple(notes)


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    if not name:
        raise UnsupportedError(f"the model is a single {type(module).__name__}: wrap it in a module with other layers")
    parent, _, child = name.rpartition(".")
    old = module.get_submodule(name)
    setattr(module.get_submodule(parent), child, layer.to(_device(old)).train(old.training))


def _device(layer: nn.Module) -> torch.device:
    return next((tensor.device for tensor in layer.state_dict().values()), torch.device("cpu"))


def _takes_gradients(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _mixes_batch(layer: nn.Module) -> bool:
    if not isinstance(layer, _BATCH_NORMS):
        return False
    return not list(layer.parameters()) or _takes_gradients(layer)


def _group_norm(layer: nn.Module) -> nn.GroupNorm:
    assert isinstance(layer, _BATCH_NORMS)
    groups = math.gcd(32, layer.num_features)
    norm = nn.GroupNorm(groups, layer.num_features, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        with torch.no_grad():
            norm.weight.copy_(layer.weight)
            norm.bias.copy_(layer.bias)
    return norm


def _batch_norm_note(names: list[str]) -> str:
    return (
        f"{len(names)} BatchNorm layer{'s' if len(names) > 1 else ''} ({', '.join(names)}) became GroupNorm with the "
        "same scale and shift: BatchNorm mixes the samples of a batch, so the influence of one cannot be bounded. The "
        "running statistics are gone; accuracy starts lower and part of the loss against the base is due to this."
    )


def _refuse_unsupported(module: nn.Module) -> None:
    errors = []
    for name, layer in module.named_modules():
        check = ModuleValidator.VALIDATORS.get(type(layer))
        # Opacus refuses attention because its replacement differs from it; here it keeps its own parameters.
        if check is not None and _takes_gradients(layer) and not isinstance(layer, nn.MultiheadAttention):
            errors += [f"{name or 'the model'}: {error}" for error in check(layer)]
    if errors:
        raise UnsupportedError(f"DP-SGD cannot train this model: {'; '.join(errors)}")
    for name, layer in module.named_modules():
        tracked = [key for key, buffer in layer.named_buffers(recurse=False) if key.startswith("running_")]
        own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
        if tracked and own:
            raise UnsupportedError(
                f"DP-SGD cannot train {name or type(layer).__name__}: it keeps statistics of the data "
                f"({', '.join(tracked)}), which no noise protects"
            )
