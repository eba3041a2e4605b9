"""Quantisation to 8-bit integers: what a network answers when weights and activations have 256 levels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...attacks.errors import UnsupportedError
from .layers import replaced

Mode = Literal["dynamic", "static"]
_LEVELS = 255
_MIDDLE = 128


class Quantized(nn.Module):
    """A linear or 2-d convolutional layer on integers (Jacob et al., arXiv 1712.05877).

    Weights are int8 with one scale per output channel. Inputs are rounded to 256 levels between ``low`` and ``high``,
    which calibration found (static), or between the least and greatest value of each sample (dynamic; by sample and
    not by batch, so that an answer does not depend on its neighbours).

    Two ways of computing the same: with floats that hold the integers, differentiable straight through the rounding
    (arXiv 1308.3432), which is what gradient attacks need; and with int8 products summed in int32, as deployed, inside
    :func:`integer_arithmetic`. They differ by float rounding alone.
    """

    weight: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, mode: Mode) -> None:
        super().__init__()
        weight = layer.weight.detach()
        scale = (weight.flatten(1).abs().amax(1) / 127).clamp_min(torch.finfo(weight.dtype).tiny)
        self.register_buffer("weight", (weight / _over(scale, weight)).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale.float())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.mode: Mode = mode
        self.integer = False
        self._convolution = _options(layer) if isinstance(layer, nn.Conv2d) else None
        if mode == "static":
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("high", torch.zeros(()))

    @property
    def kind(self) -> str:
        return "Linear" if self._convolution is None else "Conv2d"

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it was made from."""
        if self.integer:
            return self._with_integers(x)
        low, step = self._grid(x)
        clamped = x.clamp(low, low + _LEVELS * step)  # cuts off what calibration did not see, and its gradient
        rounded = (clamped / step).round() * step
        x = clamped + (rounded - clamped).detach()
        return self._computed(x, self.weight.to(x.dtype) * _over(self.scale.to(x.dtype), self.weight), self.bias)

    def observe(self, x: Tensor) -> None:
        """Widens the range of a static layer to hold ``x``."""
        self.low.copy_(torch.minimum(self.low, x.detach().amin()))
        self.high.copy_(torch.maximum(self.high, x.detach().amax()))

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest level and distance of levels, 0 being one of them; scalars, or one per sample ``(n, 1, ...)``."""
        if self.mode == "static":
            low, high = self.low.to(x.dtype), self.high.to(x.dtype)
        else:
            flat = x.detach().flatten(1)
            shape = (-1, *[1] * (x.dim() - 1))
            low, high = flat.amin(1).clamp_max(0).view(shape), flat.amax(1).clamp_min(0).view(shape)
        # One level to spare: moving the lowest onto the grid must not push the highest out.
        step = ((high - low) / (_LEVELS - 1)).clamp_min(torch.finfo(x.dtype).tiny * 1e6)
        return (low / step).round() * step, step

    def _computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._convolution is None:
            return functional.linear(x, weight, bias)
        stride, padding, dilation, groups = self._convolution
        return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @torch.no_grad()
    def _with_integers(self, x: Tensor) -> Tensor:
        if self._convolution is None:
            low, step = self._grid(x)
            levels, zero = self._levels(x, low, step)
            sums = _product(levels.flatten(0, -2), self.weight.t()).view(*x.shape[:-1], -1)
            return self._scaled(sums, step, zero, self.weight.sum(1, dtype=torch.int32))
        stride, padding, dilation, groups = self._convolution
        low, step = self._grid(x)
        padded = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        levels, zero = self._levels(padded, low, step)
        size = [
            (side - d * (k - 1) - 1) // s + 1
            for side, d, k, s in zip(padded.shape[2:], dilation, self.weight.shape[2:], stride, strict=True)
        ]
        columns = functional.unfold(levels.to(x.dtype), self.weight.shape[2:], dilation, 0, stride).to(torch.int8)
        flat = self.weight.flatten(1)
        sums = torch.cat(
            [
                _product(rows.transpose(1, 2).flatten(0, 1), own.t()).view(len(x), -1, len(own))
                for rows, own in zip(columns.chunk(groups, 1), flat.chunk(groups), strict=True)
            ],
            2,
        )
        sums = sums.transpose(1, 2).reshape(len(x), -1, *size)
        return self._scaled(sums, step, zero, _over(flat.sum(1, dtype=torch.int32), sums[0]))

    def _levels(self, x: Tensor, low: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of levels, moved into int8, and the number that stands for 0."""
        zero = -(low / step).round() - _MIDDLE
        levels = (x / step).round() + zero
        return levels.clamp(-_MIDDLE, _LEVELS - _MIDDLE).to(torch.int8), zero

    def _scaled(self, sums: Tensor, step: Tensor, zero: Tensor, of_weights: Tensor) -> Tensor:
        centred = sums - zero.to(torch.int32) * of_weights
        scale, bias = self.scale, self.bias
        if self._convolution is not None:
            scale, bias = _over(scale, sums[0]), None if bias is None else _over(bias, sums[0])
        result = centred.to(step.dtype) * (step * scale)
        return result if bias is None else result + bias

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.weight.shape)}, {self.mode}"


def quantize(module: nn.Module, mode: Mode) -> int:
    """Replaces every linear and 2-d convolutional layer by its :class:`Quantized` form, in place; how many.

    Static layers need :func:`calibrate` before use. Other layers, and those inside ``nn.MultiheadAttention``, stay in
    floating point.

    Raises:
        UnsupportedError: when there is no such layer.
    """

    def integer_form(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and _plain(layer)):
            return Quantized(layer, mode).train(layer.training)
        return None

    count = replaced(module, integer_form)
    if not count:
        raise UnsupportedError(f"{type(module).__name__} has no linear or 2-d convolutional layer to quantise")
    return count


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the input ranges of static layers to what they meet on ``batches``, computed in floating point."""
    layers = [layer for layer in module.modules() if isinstance(layer, Quantized)]
    seen = False

    def passing(layer: Quantized, inputs: tuple[Tensor, ...]) -> None:
        layer.observe(inputs[0])

    for layer in layers:
        layer.low.zero_()
        layer.high.zero_()
        layer.mode = "dynamic"  # while looking on, what comes later must not be clipped by ranges still empty
    hooks = [layer.register_forward_pre_hook(passing) for layer in layers]
    try:
        for batch in batches:
            module(batch)
            seen = True
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.mode = "static"
    if not seen:
        raise UnsupportedError("static quantisation needs at least one batch to calibrate on")


@contextmanager
def integer_arithmetic(module: nn.Module) -> Iterator[None]:
    """Inside, quantised layers compute with int8 products summed in int32; without gradients."""
    layers = [layer for layer in module.modules() if isinstance(layer, Quantized)]
    for layer in layers:
        layer.integer = True
    try:
        yield
    finally:
        for layer in layers:
            layer.integer = False


def _product(a: Tensor, b: Tensor) -> Tensor:
    """int8 ``(m, d)`` times int8 ``(d, o)`` in int32; exact."""
    if a.device.type != "cpu":  # there only some shapes have a kernel; floats hold these sums exactly
        wide = torch.float64 if a.is_cuda else torch.float32
        return (a.to(wide) @ b.to(wide)).round().to(torch.int32)
    return torch._int_mm(a.contiguous(), b)  # pyright: ignore[reportPrivateImportUsage]


def _over(vector: Tensor, like: Tensor) -> Tensor:
    """``(o,)`` in a shape that broadcasts over ``like`` ``(o, ...)``."""
    return vector.view(-1, *[1] * (like.dim() - 1))


def _plain(layer: nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _options(layer: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    assert not isinstance(layer.padding, str)
    return tuple(layer.stride), tuple(layer.padding), tuple(layer.dilation), layer.groups
