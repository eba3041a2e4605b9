"""For each kind of layer, what a record contributes to the gradients of its parameters.

A rule gets what came into the layer and what came back to its output, rows first: ``rows = records * views``, the
views of a record one after the other (augmentation multiplicity, arXiv 2204.13650). A record's gradient is the sum over
its views.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from .shares import KEPT_NUMBERS, Deferred, Formed, Lookup, Outer, Share, matrix_share

Shares = dict[str, Share]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Rule = Callable[[nn.Module, Tensor, Tensor, int], Shares]
"""``rule(layer, seen, back, records)``: shares by the layer's own parameter names, for those that take gradients."""


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule for a layer, or None. A subclass counts only while its forward pass is that of its base."""
    for base, rule in _RULES.items():
        if isinstance(layer, base) and type(layer).forward is base.forward:
            return rule
    if type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers."):
        return _transposed_linear
    return None


def wanted(layer: nn.Module, name: str) -> bool:
    """Whether a layer's parameter takes gradients. Rules run while the layer's switches are as the user set them."""
    parameter = getattr(layer, name, None)
    return isinstance(parameter, Tensor) and parameter.requires_grad


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


def _layer_norm(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, nn.LayerNorm)
    shape = layer.normalized_shape

    def added(values: Tensor) -> Formed:
        return Formed(values.reshape(records, -1, *shape).sum(1))

    return _scale_and_shift(layer, back, lambda: functional.layer_norm(seen, shape, eps=layer.eps), added)


def _rms_norm(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, nn.RMSNorm)
    shape = list(layer.normalized_shape)

    def added(values: Tensor) -> Formed:
        return Formed(values.reshape(records, -1, *shape).sum(1))

    return _scale_and_shift(layer, back, lambda: functional.rms_norm(seen, shape, eps=layer.eps), added)


def _group_norm(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, nn.GroupNorm)
    normal = lambda: functional.group_norm(seen, layer.num_groups, eps=layer.eps)  # noqa: E731
    return _scale_and_shift(layer, back, normal, lambda values: _by_channel(values, records))


def _instance_norm(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
    normal = lambda: functional.instance_norm(seen, eps=layer.eps)  # noqa: E731
    return _scale_and_shift(layer, back, normal, lambda values: _by_channel(values, records))


def _scale_and_shift(
    layer: nn.Module, back: Tensor, normal: Callable[[], Tensor], added: Callable[[Tensor], Share]
) -> Shares:
    shares: Shares = {}
    if wanted(layer, "weight"):
        shares["weight"] = added(back * normal())
    if wanted(layer, "bias"):
        shares["bias"] = added(back)
    return shares


def _by_channel(values: Tensor, records: int) -> Formed:
    """``(rows, channels, …)`` to ``(records, channels)``."""
    sums = values.flatten(2).sum(2) if values.ndim > 2 else values
    return Formed(sums.view(records, -1, sums.shape[1]).sum(1))


def _sequences(values: Tensor, records: int) -> Tensor:
    """``(rows, …, features)`` to ``(records, t, features)``."""
    return values.reshape(records, -1, values.shape[-1])


# Convolutions


def _convolution(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, Convolution)
    back = back.contiguous()
    shares: Shares = {}
    if wanted(layer, "bias"):
        assert layer.bias is not None
        shares["bias"] = _by_channel(back, records)
    if wanted(layer, "weight"):
        shares["weight"] = _kernel_share(layer, _padded(layer, seen), back, records)
    return shares


def _kernel_share(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Share:
    """Per record, the product of what came back with the patches that the kernel saw; kept if it is small enough."""
    shape = layer.weight.shape
    views = len(seen) // records
    if len(seen) == records and layer.groups == 1 and prod(back.shape[2:]) == 1:
        patches = _patches(layer, seen)
        return _viewed(Outer(patches.flatten(1), back.flatten(1)), shape)

    def form(start: int, stop: int) -> Tensor:
        rows = slice(start * views, stop * views)
        patches, returned = _patches(layer, seen[rows]), back[rows].flatten(2).unflatten(1, (layer.groups, -1))
        gradients = returned @ patches.transpose(2, 3)  # (rows, groups, out / groups, in / groups * kernel)
        gradients = gradients.view(stop - start, views, *shape)
        return gradients.squeeze(1) if views == 1 else gradients.sum(1)

    if records * layer.weight.numel() <= KEPT_NUMBERS:
        return Formed(form(0, records))
    chunk = max(1, KEPT_NUMBERS // layer.weight.numel())
    norms = torch.cat(
        [Formed(form(start, min(start + chunk, records))).squared_norms() for start in range(0, records, chunk)]
    )
    return Deferred(norms, lambda weights: _kernel_sum(layer, seen, back, weights), lambda: form(0, records))


def _viewed(share: Share, shape: torch.Size) -> Share:
    """A matrix share for a parameter of another shape with the same numbers."""
    return Deferred(
        share.squared_norms(),
        lambda weights: share.weighted_sum(weights).view(shape),
        lambda: share.per_record().view(-1, *shape),
    )


def _kernel_sum(layer: Convolution, seen: Tensor, back: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the kernel for a weighted batch, by the library's own kernel."""
    scaled = back * weights.repeat_interleave(len(back) // len(weights)).view(-1, *[1] * (back.ndim - 1))
    zeros = [0] * (back.ndim - 2)
    _, kernel, _ = torch.ops.aten.convolution_backward(
        scaled,
        seen,
        layer.weight.detach(),
        None,
        list(layer.stride),
        zeros,
        list(layer.dilation),
        False,
        zeros,
        layer.groups,
        [False, True, False],
    )
    return kernel


def _padded(layer: Convolution, seen: Tensor) -> Tensor:
    """What the kernel slides over, so that the rest needs no padding."""
    both_sides: list[int] = layer._reversed_padding_repeated_twice
    if not any(both_sides):
        return seen
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(seen, both_sides, mode=mode)


def _patches(layer: Convolution, seen: Tensor) -> Tensor:
    """Each place of the kernel as a column: ``(rows, groups, in / groups * kernel, places)``."""
    if seen.ndim == 5:
        columns = _volume_patches(layer, seen)
    else:
        flat = seen.ndim == 3
        lift = lambda size: (1, *size) if flat else size  # noqa: E731
        image = seen.unsqueeze(2) if flat else seen
        columns = functional.unfold(
            image, lift(layer.kernel_size), dilation=lift(layer.dilation), stride=lift(layer.stride)
        )
    return columns.unflatten(1, (layer.groups, -1))


def _volume_patches(layer: Convolution, seen: Tensor) -> Tensor:
    """``unfold`` for volumes, which torch lacks: ``(rows, in * kernel, places)``."""
    for axis, (size, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        seen = seen.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    rows, channels = seen.shape[:2]
    places = prod(seen.shape[2:5])
    return seen.permute(0, 1, 5, 6, 7, 2, 3, 4).reshape(rows, channels * prod(layer.kernel_size), places)


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear_shares,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
}
