"""For each kind of layer, what a record contributes to the gradients of its parameters.

A rule gets what came into the layer and what came back to its output, rows first: ``rows = records * views``, the
views of a record one after the other (augmentation multiplicity, arXiv 2204.13650). A record's gradient is the sum over
its views.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .convolutions import convolution_shares
from .shares import Formed, Lookup, Share, Shares, by_channel, matrix_share, wanted

Rule = Callable[..., Shares]
"""``rule(layer, seen, back, records)``: shares by the layer's own parameter names, for those that take gradients. That
of a norm in :data:`NORMS` also takes the means and inverse deviations that it gives."""


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule for a layer, or None. A subclass counts only while its forward pass is that of its base."""
    for base, rule in _RULES.items():
        if isinstance(layer, base) and type(layer).forward is base.forward:
            return rule
    if type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers."):
        return _transposed_linear
    return None


def widened(values: Tensor) -> Tensor:
    """Half precision to float32, so that norms and sums are exact enough to bound; everything else as it is."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def linear_shares(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    """``y = x Wᵀ + b`` with any number of dimensions between rows and features."""
    seen, back = _sequences(seen, records), _sequences(back, records)
    shares: Shares = {}
    if wanted(layer, "weight"):
        shares["weight"] = matrix_share(seen, back)
    if wanted(layer, "bias"):
        shares["bias"] = Formed(back.squeeze(1) if back.shape[1] == 1 else back.sum(1))
    return shares


def _transposed_linear(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    """``y = x W + b``, as in GPT-2."""
    seen, back = _sequences(seen, records), _sequences(back, records)
    shares: Shares = {}
    if wanted(layer, "weight"):
        shares["weight"] = matrix_share(back, seen)
    if wanted(layer, "bias"):
        shares["bias"] = Formed(back.sum(1))
    return shares


def _embedding(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, nn.Embedding)
    if not wanted(layer, "weight"):
        return {}
    index, back = seen.reshape(records, -1), back.reshape(records, -1, back.shape[-1])
    return {"weight": Lookup(index, back, layer.num_embeddings, layer.padding_idx)}


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, with the means and inverse deviations, which need not be found again on the way back."""
    out, means, inverse = torch.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return out, means.detach(), inverse.detach()  # else they would hold the graph, which holds what is called with them


def _layer_norm(
    layer: nn.Module,
    seen: Tensor,
    back: Tensor,
    records: int,
    means: Tensor | None = None,
    inverse: Tensor | None = None,
) -> Shares:
    assert isinstance(layer, nn.LayerNorm)
    shape = layer.normalized_shape

    def normal() -> Tensor:
        if means is None or inverse is None:
            return functional.layer_norm(seen, shape, eps=layer.eps)
        return (seen - means).mul_(inverse)

    def added(values: Tensor) -> Formed:
        return Formed(values.reshape(records, -1, *shape).sum(1))

    return _scale_and_shift(layer, back, normal, added)


def _rms_norm(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, nn.RMSNorm)
    shape = list(layer.normalized_shape)

    def added(values: Tensor) -> Formed:
        return Formed(values.reshape(records, -1, *shape).sum(1))

    return _scale_and_shift(layer, back, lambda: functional.rms_norm(seen, shape, eps=layer.eps), added)


def group_norm(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, with the means and inverse deviations ``(rows, groups)``."""
    return _group_norm_of(layer, x, layer.weight, layer.bias)


def _group_norm_of(
    layer: nn.GroupNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    size = (len(x), x.shape[1], prod(x.shape[2:]))
    out, means, inverse = torch.native_group_norm(x.contiguous(), weight, bias, *size, layer.num_groups, layer.eps)
    return out, means.detach(), inverse.detach()


def _group_norm(
    layer: nn.Module,
    seen: Tensor,
    back: Tensor,
    records: int,
    means: Tensor | None = None,
    inverse: Tensor | None = None,
) -> Shares:
    """Of the scale: the products of ``back`` and what was normalised, of which only the sums are ever formed."""
    assert isinstance(layer, nn.GroupNorm)
    if means is None or inverse is None:
        _, means, inverse = _group_norm_of(layer, seen, None, None)
    groups = (len(seen), layer.num_groups, -1)
    sums = back.flatten(2).sum(2) if back.ndim > 2 else back
    shares: Shares = {}
    if wanted(layer, "weight"):
        products = torch.linalg.vecdot(back.flatten(2), seen.flatten(2)) if back.ndim > 2 else back * seen
        centred = products.view(groups) - means.unsqueeze(2) * sums.view(groups)
        shares["weight"] = by_channel((centred * inverse.unsqueeze(2)).view_as(sums), records)
    if wanted(layer, "bias"):
        shares["bias"] = by_channel(sums, records)
    return shares


def _instance_norm(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
    normal = lambda: functional.instance_norm(seen, eps=layer.eps)  # noqa: E731
    return _scale_and_shift(layer, back, normal, lambda values: by_channel(values, records))


def _scale_and_shift(
    layer: nn.Module, back: Tensor, normal: Callable[[], Tensor], added: Callable[[Tensor], Share]
) -> Shares:
    shares: Shares = {}
    if wanted(layer, "weight"):
        shares["weight"] = added(back * normal())
    if wanted(layer, "bias"):
        shares["bias"] = added(back)
    return shares


def _sequences(values: Tensor, records: int) -> Tensor:
    """``(rows, …, features)`` to ``(records, t, features)``."""
    return values if values.ndim == 3 and values.shape[0] == records else values.reshape(records, -1, values.shape[-1])


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear_shares,
    nn.Conv1d: convolution_shares,
    nn.Conv2d: convolution_shares,
    nn.Conv3d: convolution_shares,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
}

NORMS: dict[type[nn.Module], Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
}
"""Forward passes that also give what the rule needs, which need not be found again on the way back."""
