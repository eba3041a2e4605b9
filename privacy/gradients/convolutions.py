"""The gradient of each record with respect to the kernel of a convolution.

It is the product of what came back to the output with the patches that the kernel saw. Which way to form it is fastest
depends on the shapes: the processor's own convolution with the records as its groups, or copied patches and a product.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from .shares import (
    KEPT_NUMBERS,
    Arranged,
    Deferred,
    Formed,
    Outers,
    Share,
    Shares,
    by_channel,
    forming_pays,
    lengths,
    wanted,
)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

_IN_CACHE = 2**19
"""Numbers of the patches that are copied out at once: 2 MiB in float32."""


def convolution_shares(layer: nn.Module, seen: Tensor, back: Tensor, records: int) -> Shares:
    """The rule for convolutions in one, two and three dimensions (see ``rules.py``)."""
    assert isinstance(layer, Convolution)
    back = back.contiguous()
    shares: Shares = {}
    if wanted(layer, "bias"):
        shares["bias"] = by_channel(back, records)
    if wanted(layer, "weight"):
        if _suits_groups(layer, seen, back, records):
            shares["weight"] = Formed(_kernels_as_groups(layer, seen, back, records))
        else:
            shares["weight"] = _kernel_share(layer, seen, back, records)
    return shares


# The records as groups


def _suits_groups(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> bool:
    """Where the processor's own kernel beats copied patches: it copies none, but wants whole vectors of channels, and
    places enough for each of a record's kernels.

    Measured with one thread, 64 rows, 3 x 3, against the better of the others, in ms: 16 channels on 1,024 places 4.0
    against 6.7, 32 on 256 3.6 against 4.7, 64 on 196 11.5 against 13.7, 32 on 64 1.3 against 1.5; but 64 on 64 4.8
    against 4.4, 64 on 49 4.5 against 3.6, one channel to 16 on 196, 5 x 5, 0.63 against 0.37.
    """
    inside = layer.in_channels // layer.groups
    fits = records * layer.weight.numel() <= KEPT_NUMBERS and prod(back.shape[2:]) >= 2 * inside
    native = isinstance(layer, nn.Conv2d) and seen.device.type == "cpu" and seen.dtype == torch.float32
    return fits and inside % 8 == 0 and native and _mkldnn_in_use()


def _left_to_pad(layer: Convolution, seen: Tensor) -> tuple[Tensor, list[int]]:
    """``seen`` and the zeros that the library's own convolution shall add on either side."""
    if isinstance(layer.padding, tuple) and layer.padding_mode == "zeros":
        return seen, list(layer.padding)
    return padded(layer, seen), [0] * (seen.ndim - 2)


def _mkldnn_in_use() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # pyright: ignore[reportReturnType]


def _kernels_as_groups(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Tensor:
    """Every record's gradient of the kernel, ``(records, *weight)``: the rows are made the groups of one convolution,
    whose kernels have nothing to do with each other."""
    seen, padding = _left_to_pad(layer, seen)
    rows, shape = len(back), layer.weight.shape
    seen, back = (values.reshape(1, -1, *values.shape[2:]) for values in (seen, back))
    like = back.new_empty(rows * shape[0], *shape[1:])  # for its shape only
    kernels = _kernel_gradient(layer, seen, back, like, padding, rows * layer.groups).reshape(records, -1, *shape)
    return kernels.squeeze(1) if rows == records else kernels.sum(1)


def _kernel_gradient(
    layer: Convolution, seen: Tensor, back: Tensor, like: Tensor, padding: list[int], groups: int
) -> Tensor:
    """By the library's own kernel, of the shape of ``like``."""
    stride, dilation, none = list(layer.stride), list(layer.dilation), [0] * len(padding)
    rest = (stride, padding, dilation, False, none, groups, [False, True, False])
    return torch.ops.aten.convolution_backward(back, seen, like, None, *rest)[1]


# Patches


def _kernel_share(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Share:
    """Per record, the product of what came back with the patches that the kernel saw, kept if it is small enough; not
    formed where there are few places for so large a kernel.

    Measured as above, with norms and sums, in ms: 256 channels to 256 on 16 places 20 in place of 49, 64 to 64 on 64
    places 9.4 in place of 5.1.
    """
    views, inputs, outputs = len(seen) // records, layer.weight[0].numel(), layer.out_channels // layer.groups
    times, kept = views * prod(back.shape[2:]), records * layer.weight.numel() <= KEPT_NUMBERS
    if not forming_pays(times, inputs, outputs) or (not kept and times * (inputs + outputs) <= inputs * outputs):
        return _by_gram_matrices(layer, seen, back, records)
    gathered = _suits_gathering(layer, seen, back)
    form = _gathered if gathered else _copied
    around = padded(layer, seen, last=not gathered and _channels_last(layer, seen))
    if kept:
        return form(layer, around, back, records)
    at_once = max(1, KEPT_NUMBERS // layer.weight.numel())
    parts = [rows.split(at_once * views) for rows in (around, back)]
    norms = [form(layer, x, g, len(x) // views).norms() for x, g in zip(*parts, strict=True)]
    return Deferred(
        torch.cat(norms),
        lambda weights: _kernel_sum(layer, seen, back, weights),
        lambda: form(layer, around, back, records).per_record(),
    )


def _by_gram_matrices(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Deferred:
    """Norms as for a matrix that met each place's patch (arXiv 2205.10683), the sum from one more pass of the layer."""
    views, groups, places = len(seen) // records, layer.groups, prod(back.shape[2:])
    around = padded(layer, seen)
    _, index = patches_of(layer, around)
    at_once = views * max(1, _IN_CACHE // (views * len(index)))

    def norms(x: Tensor, g: Tensor) -> Tensor:
        n = len(x) // views
        patches = x.flatten(1).index_select(1, index).view(n, views, groups, places, -1).transpose(1, 2)
        returned = g.view(n, views, groups, -1, places).permute(0, 2, 1, 4, 3)
        joint = Outers(*(part.reshape(n * groups, views * places, -1) for part in (patches, returned)))
        return lengths(joint.norms().view(n, groups))

    return Deferred(
        torch.cat([norms(x, g) for x, g in zip(around.split(at_once), back.split(at_once), strict=True)]),
        lambda weights: _kernel_sum(layer, seen, back, weights),
        lambda: _gathered(layer, around, back, records).per_record(),
    )


def _suits_gathering(layer: Convolution, seen: Tensor, back: Tensor) -> bool:
    """Whether patches are best taken number by number: with a stride there are few neighbours to copy in one go.

    Measured as above: one channel to 16, 5 x 5, stride 2, 0.37 ms against 0.49; 32 to 64, 3 x 3, stride 2, 2.3 against
    2.5; without a stride, one channel to 20, 5 x 5, 1.3 against 1.1.
    """
    numbers = layer.groups * layer.weight[0].numel() * prod(back.shape[2:])
    return max(layer.stride) > 1 and seen.device.type == "cpu" and numbers <= _IN_CACHE


def _gathered(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Formed:
    """Through the positions of what each place of the output saw, some records at a time."""
    rows, groups = len(seen), layer.groups
    _, index = patches_of(layer, seen)
    flat, returned = seen.flatten(1), back.reshape(rows * groups, -1, prod(back.shape[2:]))
    out = back.new_empty(rows * groups, returned.shape[1], layer.weight[0].numel())
    chunk = min(rows, max(1, _IN_CACHE // len(index)))
    buffer = seen.new_empty(chunk, len(index))
    for start in range(0, rows, chunk):
        stop = min(start + chunk, rows)
        patches = torch.index_select(flat[start:stop], 1, index, out=buffer[: stop - start])
        part = slice(start * groups, stop * groups)
        torch.bmm(returned[part], patches.view(-1, returned.shape[2], out.shape[2]), out=out[part])
    return Formed(_over_views(layer, out, records).view(records, *layer.weight.shape))


def patches_of(layer: Convolution, seen: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """The sizes of the output for the padded ``seen (rows, channels, …)`` and where in a flattened row its patches
    are, int64, in the order ``(groups, *places, channels / groups, *kernel)``."""
    sizes = zip(seen.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    places = tuple((size - dilation * (wide - 1) - 1) // step + 1 for size, wide, step, dilation in sizes)
    shape = tuple(seen.shape[1:])
    index = _positions(shape, layer.kernel_size, layer.stride, layer.dilation, layer.groups, places)
    return places, index.to(seen.device)


@lru_cache(maxsize=64)
def _positions(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    places: tuple[int, ...],
) -> Tensor:
    """See :func:`patches_of`; ``shape`` is that of one row."""
    where = torch.arange(prod(shape)).view(shape)
    inside, steps = shape[0] // groups, where.stride()[1:]
    over_places = [a * b for a, b in zip(steps, stride, strict=True)]
    over_kernel = [a * b for a, b in zip(steps, dilation, strict=True)]
    sizes = (groups, *places, inside, *kernel)
    return where.as_strided(sizes, (inside * where.stride(0), *over_places, where.stride(0), *over_kernel)).flatten()


def _copied(layer: Convolution, seen: Tensor, back: Tensor, records: int) -> Arranged:
    """In the order in which the copy is fastest, a few records at a time, so that one small buffer, which stays in the
    cache, holds the patches."""
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
    return Arranged(Formed(_over_views(layer, out, records)), lambda gradients: _arranged(layer, gradients, last=last))


def _over_views(layer: Convolution, products: Tensor, records: int) -> Tensor:
    """``(rows * groups, …)`` to ``(records, numbers)``: summed over a record's views."""
    products = products.view(records, -1, layer.weight.numel())
    return products.squeeze(1) if products.shape[1] == 1 else products.sum(1)


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
    """The gradient of the kernel for a weighted batch."""
    scaled = back * weights.repeat_interleave(len(back) // len(weights)).view(-1, *[1] * (back.ndim - 1))
    seen, padding = _left_to_pad(layer, seen)
    return _kernel_gradient(layer, seen, scaled, layer.weight.detach(), padding, layer.groups)


def padded(layer: Convolution, seen: Tensor, *, last: bool = False) -> Tensor:
    """What the kernel slides over, so that the rest needs no padding; with ``last`` channels last in memory."""
    both_sides: list[int] = layer._reversed_padding_repeated_twice
    if not any(both_sides):
        return seen
    if layer.padding_mode != "zeros":
        return functional.pad(seen, both_sides, mode=layer.padding_mode)
    if last:  # padded and put in order in one pass
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
