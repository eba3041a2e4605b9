"""The layer that Grad-CAM looks at."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError
from ...defenses.compression.quantization import Quantized
from .borrow import explaining

_CONVOLUTIONS = (nn.Conv2d, Quantized)
"""Quantised linear layers among them give no maps, which is what counts."""


def grad_cam_layer(module: nn.Module, x: Tensor, name: str | None = None) -> str:
    """Name of the layer to explain: ``name`` when it gives maps ``(n, c, h, w)``, else the last such convolution.

    Last in order of execution on ``x`` ``(n, c, h, w)``, not of definition; convolutions whose output is a single
    pixel tell nothing about places and are passed over.

    Raises:
        UnsupportedError: when there is no such layer; names the convolutions that exist.
    """
    if name is not None and name not in dict(module.named_modules()):
        known = [own for own, part in module.named_modules() if isinstance(part, _CONVOLUTIONS)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Convolutions: {', '.join(known) or 'none'}."
        raise UnsupportedError(f"the model has no layer {name!r}. {hint}")
    ran = _ran(module, x[:1], lambda own, part: own == name if name is not None else isinstance(part, _CONVOLUTIONS))
    maps = [own for own, shape in ran if len(shape) == 4 and shape[2] * shape[3] > 1]
    if maps:
        return maps[-1]
    if name is not None:
        raise UnsupportedError(f"Grad-CAM needs a layer that gives maps (n, c, h, w); {name!r} does not")
    raise UnsupportedError(
        "Grad-CAM needs a convolutional layer and this model has none that gives maps: "
        "name a layer (layer: …) or choose another method, such as integrated_gradients"
    )


def map_size(module: nn.Module, x: Tensor, name: str) -> tuple[int, int]:
    """Height and width of what layer ``name`` gives for ``x``."""
    shape = _ran(module, x[:1], lambda own, _: own == name)[-1][1]
    return shape[2], shape[3]


def _ran(module: nn.Module, x: Tensor, wanted: Callable[[str, nn.Module], bool]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and output shapes of the wanted layers, in the order in which they ran."""
    ran: list[tuple[str, tuple[int, ...]]] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                ran.append((name, tuple(output.shape)))

        return hook

    with explaining(module), torch.no_grad():
        handles = [part.register_forward_hook(watch(own)) for own, part in module.named_modules() if wanted(own, part)]
        try:
            module(x)
        finally:
            for handle in handles:
                handle.remove()
    return ran
