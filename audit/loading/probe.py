"""Runs a model on a few samples before the audit, to see whether its output is logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..samples import Samples
from ..target import Encode

_PROBES = 8

PROBABILITIES = (
    "the model returns probabilities, not logits; it is audited on their logarithm. A softmax inside the model "
    "saturates and hides gradients, so attacks may look weaker than they are: return the logits if you can"
)

RANDOM = (
    "the model's output is random: two runs on the same input differ, although it is in eval mode; "
    "results vary from run to run, and attacks may look weaker than they are"
)


@dataclass(frozen=True, slots=True)
class Probed:
    """The module as it will be audited, its number of classes, and what was noticed."""

    module: nn.Module
    k: int
    warnings: tuple[str, ...] = ()


class TakeLogits(nn.Module):
    """A model whose output has a field ``logits``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return _field(self.body(x))


class Float32(nn.Module):
    """A model in another precision: takes and returns float32."""

    def __init__(self, body: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.body = body
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(self.dtype) if x.is_floating_point() else x).float()


class LogProbabilities(nn.Module):
    """A model that returns probabilities; their logarithm serves as logits."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).clamp_min(1e-12).log()


def probe(module: nn.Module, encode: Encode, samples: Samples, device: torch.device) -> Probed:
    """Finds out what the model returns and wraps it so that it returns float32 logits.

    Raises:
        ModelError: when it fails on the samples, or returns anything that is not finite logits ``(n, k)``.
    """
    index = np.linspace(0, len(samples) - 1, min(_PROBES, len(samples))).astype(np.int64)
    x = encode(samples.inputs[np.unique(index)]).to(device)
    dtype = _precision(module)
    module, logits = _logits(module, x.to(dtype) if x.is_floating_point() else x)
    _check_shape(logits, len(x))
    if not logits.is_floating_point():
        raise ModelError(f"the model returns {_dtype(logits)}: it must return logits as floats, not class numbers")
    if not torch.isfinite(logits).all():
        kind = "NaN" if torch.isnan(logits).any() else "infinity"
        raise ModelError(f"the model returns {kind} for valid inputs: check weights, preprocessing and number range")
    if dtype != torch.float32 or logits.dtype != torch.float32:
        module = Float32(module, dtype)
    warnings = []
    if _are_probabilities(logits):
        module = LogProbabilities(module)
        warnings.append(PROBABILITIES)
    if not _same_twice(module, x):
        warnings.append(RANDOM)
    return Probed(module, logits.shape[1], tuple(warnings))


def _precision(module: nn.Module) -> torch.dtype:
    """The one floating-point type of the parameters, or float32 where they are mixed or absent."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _logits(module: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    output = _run(module, x)
    if isinstance(output, Tensor):
        return module, output
    field = _field(output)
    if isinstance(field, Tensor):
        return TakeLogits(module), field
    shape = f" of {len(output)}" if isinstance(output, tuple | list) else ""
    raise ModelError(
        f"the model returns a {type(output).__name__}{shape}: it must return one tensor of logits (n, k), "
        "or an object with a field `logits`. Wrap it in a module that returns the logits alone"
    )


@torch.no_grad()
def _run(module: nn.Module, x: Tensor) -> Any:
    try:
        return module(x)
    except Exception as error:
        shape = tuple(x.shape[1:])
        raise ModelError(
            f"the model fails on inputs of shape {shape} (that is (c, h, w) for images): {error}. "
            "Check data.layout, model.preprocessing.size and the number of channels"
        ) from error


def _field(output: Any) -> Any:
    return output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)


def _check_shape(logits: Tensor, n: int) -> None:
    if logits.ndim != 2 or len(logits) != n:
        raise ModelError(f"the model returns shape {tuple(logits.shape)} for {n} inputs: it must be ({n}, k)")
    if logits.shape[1] < 2:
        raise ModelError(
            "the model returns one output a sample: a classifier needs at least two. "
            "For a binary model return the logits of both classes, such as torch.cat([-z, z], 1) / 2"
        )


def _are_probabilities(logits: Tensor) -> bool:
    total = logits.sum(1)
    return bool((logits >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-3))


def _same_twice(module: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(module(x), module(x), rtol=1e-4, atol=1e-5)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
