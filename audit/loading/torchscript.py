"""TorchScript can run code when it is loaded: only a spec that says ``trust: true`` gets it."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import ModelError, UnsafeModelError, UnsupportedError
from .files import read_bytes, sha256
from .formats import Format, identify

_ADVICE = "name a factory (model.factory: model.py:build) and its weights (model.weights: model.safetensors)"


@dataclass(frozen=True, slots=True)
class Script:
    """A loaded TorchScript module and the hash of its file."""

    module: nn.Module
    sha256: str


def read_torchscript(path: Path, trust: bool) -> Script:
    """Loads ``model.source``.

    Raises:
        UnsafeModelError: for TorchScript without ``trust``; nothing of it was executed.
        UnsupportedError: for formats that cannot be read yet.
        ModelError: when the file is missing, damaged, or holds weights without a model.
    """
    if "http:" in str(path) or "https:" in str(path) or path.is_dir():
        raise UnsupportedError(f"model.source {path}: folders and endpoints are not supported yet; {_ADVICE}")
    content = read_bytes(path, ModelError)
    match identify(content):
        case Format.TORCHSCRIPT if trust:
            return Script(_load(content, path), sha256(content))
        case Format.TORCHSCRIPT:
            raise UnsafeModelError(
                f"{path}: refused: {Format.TORCHSCRIPT.value}. If you trust its origin, set model.trust: true; "
                f"otherwise {_ADVICE}"
            )
        case Format.SAFETENSORS | Format.TORCH_ZIP | Format.TORCH_LEGACY as kind:
            raise ModelError(f"{path} is {kind.value}: it holds weights, but no model; {_ADVICE}")
        case Format.ONNX | Format.EXPORTED | Format.GGUF as kind:
            raise UnsupportedError(f"{path}: {kind.value} is not supported yet; {_ADVICE}")
        case kind:
            raise UnsafeModelError(f"{path}: refused: it is {kind.value}; {_ADVICE}")


def _load(content: bytes, path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated; the audit's own warning says what matters
            return torch.jit.load(io.BytesIO(content), map_location="cpu")
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path}: TorchScript cannot load it ({reason})") from error
