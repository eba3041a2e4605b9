"""Pruning of whole channels: the network becomes a smaller one of the same kind."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from ...attacks.errors import UnsupportedError
from .layers import matrix, share

_THROUGH = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    nn.Softplus,
    nn.Hardtanh,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_FUNCTIONS = {
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    functional.relu,
    functional.leaky_relu,
    functional.gelu,
    functional.silu,
    functional.dropout,
    functional.max_pool2d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
}
_METHODS = {"relu", "sigmoid", "tanh", "contiguous"}

Producer = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(slots=True)
class _Channels:
    """A layer and what must change with its output channels."""

    layer: Producer
    norms: list[nn.BatchNorm1d | nn.BatchNorm2d] = field(default_factory=list)
    readers: list[Producer] = field(default_factory=list)


@torch.no_grad()
def prune_channels(module: nn.Module, amount: float) -> dict[str, tuple[int, int]]:
    """Removes in each layer the ``amount`` of output channels whose weights have the smallest l1 norm, in place.

    https://arxiv.org/abs/1608.08710. The network really shrinks: rows of the layer, entries of batch norms, and
    columns of the layers that read it go. A layer is left alone when its output meets a sum, a reshaping or a layer
    that ties channels together, or leaves the network: shrinking it would change more than itself.

    Returns:
        Channels before and after, by name of the layer.

    Raises:
        UnsupportedError: when the network's code cannot be traced or no layer can be pruned.
    """
    share("amount", amount)
    groups = dict(_groups(module))
    if not groups:
        raise UnsupportedError(
            f"{type(module).__name__} has no layer whose channels can be removed on their own: "
            "prune single weights instead (structure: weights)"
        )
    kept: dict[str, Tensor] = {}
    for name, group in groups.items():
        sizes = matrix(group.layer.weight).abs().sum(1)
        count = max(1, len(sizes) - round(amount * len(sizes)))
        kept[name] = sizes.argsort(descending=True, stable=True)[:count].sort().values
    changed = {}
    for name, group in groups.items():
        before = len(group.layer.weight)
        _narrow(group, kept[name], before)
        changed[name] = (before, len(kept[name]))
    return changed


def _groups(module: nn.Module) -> Iterator[tuple[str, _Channels]]:
    try:
        graph = fx.Tracer().trace(module)
    except Exception as error:  # whatever the user's forward does with a symbol instead of a tensor
        raise UnsupportedError(
            f"channels of {type(module).__name__} cannot be pruned: its forward cannot be traced "
            f"({str(error).splitlines()[0]}). Prune single weights instead (structure: weights)"
        ) from error
    modules = dict(module.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    used = [modules[str(node.target)] for node in calls]
    for node in calls:
        layer = modules[str(node.target)]
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and _single(layer, used):
            group = _Channels(layer)
            if _follow(node, group, modules, used) and group.readers:
                yield str(node.target), group


def _single(layer: nn.Module, used: list[nn.Module]) -> bool:
    """Whether a layer is called once and its channels are independent."""
    return used.count(layer) == 1 and getattr(layer, "groups", 1) == 1


def _follow(node: fx.Node, group: _Channels, modules: dict[str, nn.Module], used: list[nn.Module]) -> bool:
    """Collects what reads ``node``; false when something does that channels cannot be taken from."""
    for user in node.users:
        if user.op == "call_module":
            layer = modules[str(user.target)]
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and _single(layer, used) and _reads(group, layer):
                group.readers.append(layer)
                continue
            if isinstance(layer, _BATCH_NORMS) and used.count(layer) == 1:
                group.norms.append(layer)
            elif not (isinstance(layer, _THROUGH) or _apart(group.layer, layer)):
                return False
        elif _size(user):
            continue
        elif not _elementwise(user):
            return False
        if not _follow(user, group, modules, used):
            return False
    return bool(node.users)


def _apart(producer: Producer, layer: nn.Module) -> bool:
    """Layers that keep a convolution's channels apart."""
    flattening = isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1
    pooling = isinstance(producer, nn.Conv1d | nn.Conv2d) and isinstance(layer, _POOLS)
    return pooling or flattening


def _reads(group: _Channels, layer: Producer) -> bool:
    """Whether the columns of ``layer`` belong to the channels, in equal blocks where they were flattened."""
    channels, columns = len(group.layer.weight), layer.weight.shape[1]
    if isinstance(group.layer, nn.Linear):
        return isinstance(layer, nn.Linear) and columns == channels
    return columns % channels == 0 if isinstance(layer, nn.Linear) else columns == channels


def _elementwise(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target in ("view", "reshape"):
        batch = node.args[1]
        return isinstance(batch, fx.Node) and _size(batch) and node.args[2:] == (-1,)
    flat = node.target in ("flatten", torch.flatten) and node.args[1:] == (1,) and not node.kwargs
    return flat or (node.target in _FUNCTIONS if node.op == "call_function" else node.target in _METHODS)


def _size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _size(node.args[0])


def _narrow(group: _Channels, keep: Tensor, before: int) -> None:
    layer = group.layer
    layer.weight = nn.Parameter(layer.weight[keep].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[keep].clone())
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(keep))
    for norm in group.norms:
        for name, tensor in [*norm.named_parameters(recurse=False)]:
            setattr(norm, name, nn.Parameter(tensor[keep].clone()))
        for name, tensor in [*norm.named_buffers(recurse=False)]:
            if tensor.dim():
                setattr(norm, name, tensor[keep].clone())
        norm.num_features = len(keep)
    for reader in group.readers:
        block = reader.weight.shape[1] // before
        columns = (keep[:, None] * block + torch.arange(block, device=keep.device)).flatten()
        reader.weight = nn.Parameter(reader.weight[:, columns].clone())
        setattr(reader, "in_features" if isinstance(reader, nn.Linear) else "in_channels", len(columns))
