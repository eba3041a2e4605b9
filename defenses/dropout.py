"""Dropout for networks that have none, or too little (Srivastava et al., JMLR 2014)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from ..attacks.errors import UnsupportedError
from .scope import head

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@contextmanager
def dropout(module: nn.Module, p: float) -> Iterator[None]:
    """Inside, every dropout layer drops with probability ``p``; a network without one drops inputs of its head.

    Only passes in train mode are affected, and on leaving all is as before: dropout belongs to the training, not to
    the model.

    Raises:
        UnsupportedError: when ``p`` lies outside 0..1.
    """
    if not 0 <= p < 1:
        raise UnsupportedError(f"dropout is {p}: it is a probability below 1")
    layers = [layer for layer in module.modules() if isinstance(layer, _DROPOUTS)]
    before = [layer.p for layer in layers]
    hook = None if layers else head(module).register_forward_pre_hook(_dropping(p))
    try:
        for layer in layers:
            layer.p = p
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.p = value
        if hook is not None:
            hook.remove()


def _dropping(p: float) -> Any:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (drop(inputs[0], p, layer.training), *inputs[1:])

    return hook
