"""Leaving out layers of a transformer: it becomes a shallower one of the same kind."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...attacks.errors import UnsupportedError
from .layers import share


def transformer_layers(module: nn.Module) -> nn.ModuleList | None:
    """The list of layers that a ``transformers`` model's config counts; None where there is no such list."""
    count = getattr(_config(module), "num_hidden_layers", None)
    stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    return stacks[0] if stacks and len({type(layer) for layer in stacks[0]}) == 1 else None


def drop_layers(module: nn.Module, amount: float) -> tuple[int, ...]:
    """Leaves out the share ``amount`` of a transformer's layers, evenly spaced, in place; the config says so.

    The layers that stay keep their weights, which is how DistilBERT begins (arXiv 1910.01108).

    Returns:
        Numbers of the layers that stay.

    Raises:
        UnsupportedError: when there are no layers to leave out.
    """
    share("amount", amount)
    layers = transformer_layers(module)
    if layers is None or len(layers) < 2:
        found = "no list of layers that a transformers config counts" if layers is None else "only one layer"
        raise UnsupportedError(f"{type(module).__name__} has {found}: none can be left out")
    count = min(max(1, round((1 - amount) * len(layers))), len(layers) - 1)
    stay = tuple(i * len(layers) // count for i in range(count))
    chosen = [layers[i] for i in stay]
    del layers[:]
    layers.extend(chosen)
    for place, layer in enumerate(chosen):
        parts: list[Any] = [part for part in layer.modules() if hasattr(part, "layer_idx")]
        for part in parts:  # decoders find their part of a cache by it
            part.layer_idx = place
    config = _config(module)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[i] for i in stay]
    return stay


def _config(module: nn.Module) -> Any:
    """The config of the outermost model that has one."""
    owners = (part.config for part in module.modules() if hasattr(getattr(part, "config", None), "num_hidden_layers"))
    return next(owners, None)
