"""Gradients by record for a layer without a rule: it runs again, all records side by side (``torch.func``)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ...attacks.errors import UnsupportedError
from .shares import Formed, Share


def vmapped_shares(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], back: Tensor, records: int, name: str
) -> dict[str, Share]:
    """Shares of the parameters that ``layer`` holds itself.

    Args:
        args, kwargs: what the layer was called with; tensors whose first dimension is the batch are split.
        back: ``(rows, …)``, what came back to its output.
        name: for messages.

    Raises:
        UnsupportedError: when the layer cannot run so: it draws random numbers, or does what ``vmap`` does not know.
    """
    own = {
        key: parameter.detach() for key, parameter in layer.named_parameters(recurse=False) if parameter.requires_grad
    }
    rows = len(back)
    given = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    split = {
        key: value.detach()
        for key, value in given.items()
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
    }

    def score(parameters: dict[str, Tensor], one: dict[str, Tensor], returned: Tensor) -> Tensor:
        values = {**given, **{key: value.unsqueeze(0) for key, value in one.items()}}
        positional = tuple(values[str(i)] for i in range(len(args)))
        out = functional_call(layer, parameters, positional, {key: values[key] for key in kwargs})
        return (out.squeeze(0).to(returned.dtype) * returned).sum()

    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found = vmap(grad(score), in_dims=(None, 0, 0))(own, split, back)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedError(
            f"DP-SGD cannot train {name}: {type(layer).__name__} has no rule for gradients by record, and torch.func "
            f"cannot run it by record ({reason}); freeze it or use a supported layer"
        ) from error
    return {key: Formed(value.view(records, -1, *own[key].shape).sum(1)) for key, value in found.items()}
