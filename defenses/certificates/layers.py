"""Which layers of torch.nn can be bounded, and as what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

from ...attacks.errors import UnsupportedError
from .operations import Affine, Map, MaxPool, Monotone, Operation, Rectifier

ALTERNATIVES = (
    "Bounds know Linear, Conv, BatchNorm (in eval mode), average and max pooling, Flatten, Dropout, ReLU, LeakyReLU, "
    "ReLU6, Hardtanh, Sigmoid, Tanh, ELU, Softplus and sums. For other networks use randomised smoothing, whose "
    "certificate needs nothing of the model"
)

_SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_NONNEGATIVE = (
    nn.Flatten,
    nn.Unflatten,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.ZeroPad2d,
)
_MONOTONE = (nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus)


def of_layer(layer: nn.Module, name: str) -> Operation:
    """The operation that a layer is.

    Raises:
        UnsupportedError: naming the layer and what can be done.
    """
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise unsupported(f"{name} ({type(layer).__name__} with hooks, which may change what passes)")
    match layer:
        case nn.Linear():
            return linear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() if layer.padding_mode == "zeros":
            return _convolution(layer)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if layer.running_var is not None:
            return _batch_norm(layer)
        case nn.ReLU():
            return Rectifier(0.0)
        case nn.LeakyReLU() if 0 <= layer.negative_slope <= 1:
            return Rectifier(layer.negative_slope)
        case nn.MaxPool2d():
            return max_pool(name, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    if isinstance(layer, _SAME):
        return Affine(_same, _same, _same_back)
    if isinstance(layer, _NONNEGATIVE) and not _across_samples(layer):
        return nonnegative(layer)
    if isinstance(layer, _MONOTONE) and getattr(layer, "alpha", 1) > 0:
        return Monotone(type_checked(layer))
    raise unsupported(f"{name} ({type(layer).__name__})")


def _across_samples(layer: nn.Module) -> bool:
    first = getattr(layer, "start_dim", getattr(layer, "dim", 1))
    return not (isinstance(first, int) and first > 0)


def unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(f"{what} cannot be bounded. {ALTERNATIVES}")


def type_checked(layer: nn.Module) -> Map:
    """A layer without its in-place option, which would write into the bounds."""
    if not getattr(layer, "inplace", False):
        return layer
    return lambda x: layer(x.clone())


def nonnegative(apply: Map) -> Affine:
    """An average, a reshaping, or another linear map whose weights are not negative."""
    return Affine(apply, apply)


def linear(weight: Tensor, bias: Tensor | None) -> Affine:
    return Affine(
        lambda x: functional.linear(x, weight, bias),
        lambda r: functional.linear(r, weight.abs()),
        lambda a, _: functional.linear(a, weight.T),
    )


def scaled(scale: Tensor, shift: Tensor) -> Affine:
    """``scale * x + shift``, both of a shape that broadcasts to one sample."""
    return Affine(lambda x: x * scale + shift, lambda r: r * scale.abs(), lambda a, _: a * scale)


def max_pool(name: str, kernel: Any, stride: Any, padding: Any, dilation: Any = 1, ceil_mode: bool = False) -> MaxPool:
    if _pair(dilation) != (1, 1) or ceil_mode:
        raise unsupported(f"{name} (max-pooling with dilation or ceil_mode)")
    return MaxPool(_pair(kernel), _pair(stride if stride is not None else kernel), _pair(padding))


def _convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Affine:
    weight = layer.weight.detach()
    back: dict[type, Callable[..., Tensor]] = {
        nn.Conv1d: grad.conv1d_input,
        nn.Conv2d: grad.conv2d_input,
        nn.Conv3d: grad.conv3d_input,
    }
    convolve = layer._conv_forward
    bias = None if layer.bias is None else layer.bias.detach()
    kind = next(kind for kind in back if isinstance(layer, kind))
    transpose = None
    if not isinstance(layer.padding, str):
        transpose = lambda a, shape: back[kind](  # noqa: E731
            (len(a), *shape), weight, a, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    return Affine(lambda x: convolve(x, weight, bias), lambda r: convolve(r, weight.abs(), None), transpose)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> Affine:
    assert layer.running_var is not None
    assert layer.running_mean is not None
    scale = (layer.running_var + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.detach()
    shift = -layer.running_mean * scale
    if layer.bias is not None:
        shift = shift + layer.bias.detach()

    def over(vector: Tensor, x: Tensor) -> Tensor:
        return vector.view(-1, *[1] * (x.dim() - 2))

    return Affine(
        lambda x: x * over(scale, x) + over(shift, x),
        lambda r: r * over(scale, r).abs(),
        lambda a, _: a * over(scale, a),
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _same(x: Tensor) -> Tensor:
    return x


def _same_back(a: Tensor, shape: torch.Size) -> Tensor:
    del shape
    return a
