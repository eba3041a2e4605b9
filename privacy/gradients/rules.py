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

from .shares import KEPT_NUMBERS, Arranged, Deferred, Formed, Lookup, Share, lengths, matrix_share

Shares = dict[str, Share]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Rule = Callable[..., Shares]
"""``rule(layer, seen, back, records)``: shares by the layer's own parameter names, for those that take gradients. That
of LayerNorm also takes the means and inverse deviations that :func:`layer_norm` gives."""


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


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, with the means and inverse deviations, which need not be found again on the way back."""
    return torch.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


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
    return Formed(sums if len(sums) == records else sums.view(records, -1, sums.shape[1]).sum(1))


def _sequences(values: Tensor, records: int) -> Tensor:
    """``(rows, …, features)`` to ``(records, t, features)``."""
    return values if values.ndim == 3 and len(values) == records else values.reshape(records, -1, values.shape[-1])


# Convolutions

_PLACES, _CHANNELS = range(32, 513), range(8, 33, 8)
"""Of convolutions whose rows are made groups: see :func:`_suits_groups`."""

_IN_CACHE = 2**19
"""Numbers of the patches that are copied out at once: 2 MiB in float32."""


def _convolution(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    assert isinstance(layer, Convolution)
    back = back.contiguous()
    shares: Shares = {}
    if wanted(layer, "bias"):
        assert layer.bias is not None
        shares["bias"] = _by_channel(back, records)
    if wanted(layer, "weight"):
        if _suits_groups(layer, seen, back, records):
            shares["weight"] = Formed(_kernels_as_groups(layer, seen, back, records))
        else:
            shares["weight"] = _kernel_share(layer, _padded(layer, seen), back, records)
    return shares


def _suits_groups(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> bool:
    """Where the processor's own kernel beats copied patches: it copies none, but wants whole vectors of channels.

    Measured with one thread, 64 rows, 3 x 3: 16 channels to 32 on 196 places 1.7 ms against 2.6, on 49 places 0.68
    against 0.86; one channel to 16, 5 x 5, 0.73 against 0.62; 64 to 64 6.3 against 5.6.
    """
    fits = records * layer.weight.numel() <= KEPT_NUMBERS and prod(back.shape[2:]) in _PLACES
    channels = layer.in_channels // layer.groups in _CHANNELS
    native = isinstance(layer, nn.Conv2d) and seen.device.type == "cpu" and seen.dtype == torch.float32
    return fits and channels and native and _mkldnn_in_use()


def _mkldnn_in_use() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # pyright: ignore[reportReturnType]


def _kernels_as_groups(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Tensor:
    """Every record's gradient of the kernel, ``(records, *weight)``: the rows are made the groups of one convolution,
    whose kernels have nothing to do with each other."""
    padding = [0] * (back.ndim - 2)
    if isinstance(layer.padding, tuple) and layer.padding_mode == "zeros":
        padding = list(layer.padding)
    else:
        seen = _padded(layer, seen)
    rows, shape = len(back), layer.weight.shape
    _, kernels, _ = torch.ops.aten.convolution_backward(
        back.reshape(1, -1, *back.shape[2:]),
        seen.reshape(1, -1, *seen.shape[2:]),
        back.new_empty(rows * shape[0], *shape[1:]),  # for its shape only
        None,
        list(layer.stride),
        padding,
        list(layer.dilation),
        False,
        [0] * len(padding),
        rows * layer.groups,
        [False, True, False],
    )
    kernels = kernels.reshape(records, -1, *shape)
    return kernels.squeeze(1) if rows == records else kernels.sum(1)


def _kernel_share(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Share:
    """Per record, the product of what came back with the patches that the kernel saw; kept if it is small enough."""
    last = _channels_last(layer, seen)
    arrange = lambda gradients: _arranged(layer, gradients, last=last)  # noqa: E731
    if records * layer.weight.numel() <= KEPT_NUMBERS:
        return Arranged(Formed(_kernel_gradients(layer, seen, back, records)), arrange)
    views = len(seen) // records
    at_once = max(1, KEPT_NUMBERS // layer.weight.numel())
    parts = [rows.split(at_once * views) for rows in (seen, back)]
    norms = [lengths(_kernel_gradients(layer, x, g, len(x) // views)) for x, g in zip(*parts, strict=True)]
    return Deferred(
        torch.cat(norms),
        lambda weights: _kernel_sum(layer, seen, back, weights),
        lambda: arrange(_kernel_gradients(layer, seen, back, records)),
    )


def _kernel_gradients(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Tensor:
    """Per record the products of ``back`` and the patches, ``(records, numbers)`` in the order in which they are
    fastest: a few records at a time, so that one small buffer, which stays in the cache, holds the patches."""
    places, kernel = prod(back.shape[2:]), layer.weight[0].numel()
    patches = _patches(layer, seen)
    rows, groups = patches.shape[:2]
    returned = back.reshape(rows * groups, -1, places)
    last = _channels_last(layer, seen)
    out = returned.new_empty(rows * groups, *((returned.shape[1], kernel) if last else (kernel, returned.shape[1])))
    chunk = rows if seen.is_cuda else min(rows, max(1, _IN_CACHE // patches[0].numel()))
    buffer = seen.new_empty(chunk, *patches.shape[1:])
    for start in range(0, rows, chunk):
        stop = min(start + chunk, rows)
        filled = buffer[: stop - start].copy_(patches[start:stop])
        part = slice(start * groups, stop * groups)
        if last:
            torch.bmm(returned[part], filled.view(-1, places, kernel), out=out[part])
        else:
            torch.bmm(filled.view(-1, kernel, places), returned[part].transpose(1, 2), out=out[part])
    out = out.view(records, rows // records, -1)
    return out.squeeze(1) if rows == records else out.sum(1)


def _channels_last(layer: Convolution, seen: Tensor) -> bool:
    """Which order of a patch has the longer runs of neighbours in memory, and so is copied faster."""
    return layer.kernel_size[-1] * layer.in_channels // layer.groups >= seen.shape[-1] // layer.stride[-1]


def _arranged(layer: Convolution, gradients: Tensor, *, last: bool) -> Tensor:
    """From the order of the patches to the kernel's own."""
    if not last:
        apart = gradients.view(len(gradients), layer.groups, layer.weight[0].numel(), -1)
        return apart.transpose(2, 3).reshape(-1, *layer.weight.shape)
    apart = gradients.view(len(gradients), layer.out_channels, *layer.kernel_size, -1)
    return apart.movedim(-1, 2).contiguous()


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
    if layer.padding_mode != "zeros":
        return functional.pad(seen, both_sides, mode=layer.padding_mode)
    if _channels_last(layer, seen):  # padded and put in the order of the patches in one pass
        return functional.pad(seen.movedim(1, -1), [0, 0, *both_sides]).movedim(-1, 1)
    return functional.pad(seen, both_sides)


def _patches(layer: Convolution, seen: Tensor) -> Tensor:
    """What the kernel sees at each place, as a view: ``(rows, groups, *places, *kernel, in / groups)`` with the
    channels last, ``(rows, groups, in / groups, *kernel, *places)`` otherwise."""
    last = _channels_last(layer, seen)
    if last:
        seen = seen.movedim(1, -1).contiguous().movedim(-1, 1)
    kernel, inside = layer.kernel_size, layer.in_channels // layer.groups
    steps = list(zip(seen.shape[2:], seen.stride()[2:], kernel, layer.stride, layer.dilation, strict=True))
    places = [(size - dilation * (wide - 1) - 1) // step + 1 for size, _, wide, step, dilation in steps]
    over_places, over_kernel = [apart * step for _, apart, _, step, _ in steps], [one[1] * one[4] for one in steps]
    row, channel = seen.stride()[:2]
    lead, strides = (len(seen), layer.groups), (row, inside * channel)
    if last:
        return seen.as_strided((*lead, *places, *kernel, inside), (*strides, *over_places, *over_kernel, channel))
    return seen.as_strided((*lead, inside, *kernel, *places), (*strides, channel, *over_kernel, *over_places))


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
