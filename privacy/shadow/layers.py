"""Layers that hold the weights of several models and apply each to its own share of the batch.

Between layers the batch is flat, ``(models * b, ...)``, the first model's samples first. Whatever treats samples one by
one (activations, pooling, reshaping, a forward method of one's own) then works unchanged, and only layers with weights
need to know which sample belongs to which model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..gradients.convolutions import Convolution, padded, patches_of

_LARGE_MAP = 400
"""Pixels from which, on a CPU, one-channel convolutions are faster model by model than as groups or products."""


class StackedLayer(nn.Module):
    """Base: the parameters and buffers of one layer of every model, stacked along a new first axis.

    Args:
        layers: the same layer of each model.

    Attributes:
        channels_last: whether pictures leave with their channels last in memory, which pooling on a CPU likes.
    """

    channels_last = False

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = len(layers)
        self.like = _Settings(layers[0])
        for name, _ in layers[0].named_parameters():
            values = torch.stack([layer.get_parameter(name).detach() for layer in layers])
            self.register_parameter(name, nn.Parameter(values, layers[0].get_parameter(name).requires_grad))
        for name, value in layers[0].named_buffers():
            # A counter of batches is the same for all.
            stacked = torch.stack([layer.get_buffer(name) for layer in layers]) if value.dim() else value.clone()
            self.register_buffer(name, stacked)
        self.train(layers[0].training)

    def own(self, name: str) -> Tensor | None:
        """The stacked parameter or buffer, None where the layer has none."""
        return self._parameters.get(name, self._buffers.get(name))

    def need(self, name: str) -> Tensor:
        value = self.own(name)
        assert value is not None
        return value

    def apart(self, y: Tensor) -> Tensor:
        """``(b, models * c, ...)`` to ``(models * b, c, ...)``."""
        return self.flat(y.view(len(y), self.models, -1, *y.shape[2:]).transpose(0, 1))

    def flat(self, y: Tensor) -> Tensor:
        """``(models, b, c, ...)`` to ``(models * b, c, ...)``."""
        if self.channels_last and y.ndim == 5:
            return y.movedim(2, -1).flatten(0, 1).movedim(-1, 1)
        return y.flatten(0, 1)

    def give_back(self, k: int, layer: nn.Module) -> None:
        """Writes the weights of model ``k`` into its own layer."""
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            stacked = self.need(name)
            value.data.copy_(stacked[k] if value.dim() else stacked)


class _Settings:
    """The attributes of a layer without its weights; hidden from ``nn.Module``, which would register the layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


class StackedLinear(StackedLayer):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.need("weight"), self.own("bias")
        rows = x.reshape(self.models, -1, x.shape[-1])
        # The weight comes first, so that its gradient has its layout and is kept without a copy.
        if bias is None:
            y = torch.bmm(weight, rows.transpose(1, 2))
        else:
            y = torch.baddbmm(bias[..., None], weight, rows.transpose(1, 2))
        return y.transpose(1, 2).reshape(*x.shape[:-1], -1)


class StackedConv(StackedLayer):
    """Convolutions of the models as groups of one convolution; on a CPU, whose convolutions want whole vectors of
    channels, one-channel pictures as products of each model's kernels and patches, or model by model."""

    def forward(self, x: Tensor) -> Tensor:
        layer = self.like
        if x.device.type == "cpu" and x.shape[1] == 1 and layer.in_channels == 1 and not x.requires_grad:
            return self._in_turn(x) if x[0, 0].numel() >= _LARGE_MAP else self._by_patches(x)
        x, padding = self._padding(x)
        weight, bias = self.need("weight"), self.own("bias")
        parts = x.view(self.models, -1, *x.shape[1:])
        side = parts.transpose(0, 1).reshape(parts.shape[1], -1, *x.shape[2:])
        joined = None if bias is None else bias.reshape(-1)
        rest = (layer.stride, padding, layer.dilation, layer.groups * self.models)
        return self.apart(_CONVOLUTIONS[type(layer.layer)](side, weight.flatten(0, 1), joined, *rest))

    def _padding(self, x: Tensor) -> tuple[Tensor, Any]:
        """What is left to pad: nothing but zeros."""
        layer = self.like.layer
        assert isinstance(layer, Convolution)
        return (x, layer.padding) if layer.padding_mode == "zeros" else (padded(layer, x), 0)

    def _in_turn(self, x: Tensor) -> Tensor:
        layer, weight, bias = self.like, self.need("weight"), self.own("bias")
        x, padding = self._padding(x)
        biases = [None] * self.models if bias is None else bias.unbind()
        each = zip(x.view(self.models, -1, *x.shape[1:]).unbind(), weight.unbind(), biases, strict=True)
        convolve, rest = _CONVOLUTIONS[type(layer.layer)], (layer.stride, padding, layer.dilation, layer.groups)
        return torch.cat([convolve(part, w, b, *rest) for part, w, b in each])

    def _by_patches(self, x: Tensor) -> Tensor:
        weight, bias = self.need("weight"), self.own("bias")
        layer = self.like.layer
        assert isinstance(layer, Convolution)
        x = padded(layer, x)
        places, index = patches_of(layer, x)
        patches = x.flatten(1).index_select(1, index).view(self.models, -1, weight[0, 0].numel()).transpose(1, 2)
        kernels = weight.flatten(2)
        y = torch.bmm(kernels, patches) if bias is None else torch.baddbmm(bias[..., None], kernels, patches)
        y = y.view(self.models, -1, len(x) // self.models, *places)
        return self.flat(y.transpose(1, 2))


class StackedBatchNorm(StackedLayer):
    """Each model's channels are normalised by its own share of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        layer = self.like
        side = x.view(self.models, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        mean, variance, weight, bias = (
            None if (value := self.own(name)) is None else value.reshape(-1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        by_batch = self.training or mean is None
        momentum = layer.momentum
        if self.training and layer.track_running_stats:
            seen = self.need("num_batches_tracked")
            seen.add_(1)
            momentum = 1 / float(seen) if momentum is None else momentum
        y = functional.batch_norm(side, mean, variance, weight, bias, by_batch, momentum or 0.0, layer.eps)
        return self.apart(y)


class StackedNorm(StackedLayer):
    """LayerNorm, GroupNorm: the statistics are per sample, only scale and shift belong to the model."""

    def forward(self, x: Tensor) -> Tensor:
        layer = self.like
        if isinstance(layer.layer, nn.LayerNorm):
            y = functional.layer_norm(x, layer.normalized_shape, None, None, layer.eps)
            shape = (self.models, *[1] * (x.dim() - len(layer.normalized_shape)), *layer.normalized_shape)
        else:
            y = functional.group_norm(x, layer.num_groups, None, None, layer.eps)
            shape = (self.models, 1, x.shape[1], *[1] * (x.dim() - 2))
        weight, bias = self.own("weight"), self.own("bias")
        if weight is None:
            return y
        parts = y.view(self.models, -1, *y.shape[1:]) * weight.view(shape)
        return (parts if bias is None else parts + bias.view(shape)).flatten(0, 1)


class StackedEmbedding(StackedLayer):
    """One table of all the models' rows; each model's indices point at its own part."""

    def forward(self, x: Tensor) -> Tensor:
        tables = self.need("weight")
        first = torch.arange(self.models, device=x.device) * tables.shape[1]
        index = x.reshape(self.models, -1) + first[:, None]
        return functional.embedding(index, tables.flatten(0, 1)).view(*x.shape, -1)


_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
STACKED: dict[type[nn.Module], type[StackedLayer]] = {
    nn.Linear: StackedLinear,
    **dict.fromkeys(_CONVOLUTIONS, StackedConv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), StackedBatchNorm),
    nn.LayerNorm: StackedNorm,
    nn.GroupNorm: StackedNorm,
    nn.Embedding: StackedEmbedding,
}
"""Layers with weights that can be stacked; a subclass with a forward of its own is not among them."""
