"""Reads weights from a file into a model."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import ModelError, UnsafeModelError, UnsupportedError
from .files import read_bytes, sha256
from .formats import Format, identify
from .pickle_scan import scan_bytes

_SHOWN = 4

_NESTED = ("state_dict", "model_state_dict", "model", "module", "weights")
"""Where training scripts keep the state dict inside a checkpoint."""

_PREFIXES = ("module.", "_orig_mod.")
"""Left in the keys by DataParallel and torch.compile."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, and the hash of the file they came from."""

    tensors: Mapping[str, Tensor]
    sha256: str


def read_weights(path: Path) -> Weights:
    """Reads a safetensors file or a weights-only checkpoint, told apart by content.

    Raises:
        ModelError: when the file is missing, damaged, or holds no state dict.
        UnsafeModelError: when loading it could run code; nothing of it was executed.
        UnsupportedError: for formats that cannot be read yet.
    """
    content = read_bytes(path, ModelError)
    match identify(content):
        case Format.SAFETENSORS:
            tensors = _safetensors(content, path)
        case Format.TORCH_ZIP | Format.TORCH_LEGACY:
            tensors = _checkpoint(content, path)
        case Format.ONNX | Format.EXPORTED | Format.GGUF as kind:
            advice = "save the state dict with safetensors.torch.save_file and name it in model.weights"
            raise UnsupportedError(f"{path}: {kind.value} is not supported yet; {advice}")
        case kind:
            report = scan_bytes(content, str(path))
            reasons = "; ".join(report.reasons) or kind.value
            raise UnsafeModelError(f"{path}: refused: {reasons}. Save the state dict as safetensors instead")
    return Weights(tensors, sha256(content))


def load_weights(module: nn.Module, weights: Weights, name: str) -> None:
    """Copies the weights into ``module``.

    Raises:
        ModelError: listing missing and unexpected keys and shapes that differ.
    """
    wanted = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    tensors = _without_prefix(weights.tensors, wanted)
    odd = [key for key, value in tensors.items() if value.layout != torch.strided or value.is_quantized]
    if odd:
        raise ModelError(f"{name}: {odd[0]} is sparse, nested or quantized; save plain tensors")
    missing = [key for key in wanted if key not in tensors]
    unexpected = sorted(key for key in tensors if key not in wanted)
    shapes = [
        f"{key}: file {tuple(tensors[key].shape)}, model {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    kinds = [
        f"{key}: file {_dtype(tensors[key])}, model {_dtype(value)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].is_floating_point() != value.is_floating_point()
    ]
    tied = _tied(module, tensors)
    problems = [
        *_listed("missing in the file", [key for key in missing if key not in tied]),
        *_listed("unknown to the model", unexpected),
        *_listed("shapes that differ", shapes),
        *_listed("number types that differ", kinds),
    ]
    if problems:
        raise ModelError(f"{name} does not fit the model. " + ". ".join(problems))
    try:
        module.load_state_dict(tensors, strict=False)
    except Exception as error:
        raise ModelError(f"{name} cannot be loaded into the model ({error})") from error


def _safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: damaged safetensors file ({error})") from error


def _checkpoint(content: bytes, path: Path) -> dict[str, Tensor]:
    report = scan_bytes(content, str(path))
    if report.status != "clean":
        raise UnsafeModelError(
            f"{path}: refused, nothing of it was executed: {'; '.join(report.reasons)}. "
            "Save the state dict as safetensors instead"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation notes of old storages say nothing to the auditor
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsafeModelError(f"{path}: refused by torch.load(weights_only=True): {reason}") from error
    return _state_dict(loaded, path)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    outer = _plain(loaded)
    for candidate in (outer, *(_plain(outer.get(key)) for key in _NESTED)):
        if candidate and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in candidate.items()):
            return candidate
    found = f"keys {', '.join(map(str, list(outer)[:8]))}" if outer else f"a {type(loaded).__name__}"
    raise ModelError(f"{path}: no state dict inside ({found}); save model.state_dict()")


def _plain(value: Any) -> dict[Any, Any]:
    """A dict without the attributes that a checkpoint may have set on it; empty when it is none."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _without_prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors) and not any(key.startswith(prefix) for key in wanted):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return dict(tensors)


def _tied(module: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """Keys that share their parameter with a key that the file has (tied weights are saved once)."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    filled = {id(parameters[key]) for key in tensors if key in parameters}
    return {key for key, value in parameters.items() if id(value) in filled}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(what: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return [f"{what} ({len(items)}): {', '.join(items[:_SHOWN])}{more}"]
