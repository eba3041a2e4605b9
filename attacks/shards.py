"""Outcomes of finished shards on disk, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .attack import AttackOutcome, Model
from .errors import UnsupportedError
from .threat import Threat

_VERSION = 1


@dataclass(frozen=True, slots=True)
class ShardStore:
    """A folder with one safetensors file for each shard, named by all that its outcome depends on.

    Attributes:
        folder: made when needed.
        model: names the model; None: hash its weights and buffers, which only an ``nn.Module`` has.
    """

    folder: Path
    model: str | None = None

    def key(
        self, attack: object, model: Model, threat: Threat, settings: tuple[Any, ...], x: Tensor, y: Tensor, ids: Tensor
    ) -> str:
        """The name of a shard's file.

        Raises:
            UnsupportedError: for a callable that is no module, when the store was given no name for it.
        """
        digest = hashlib.sha256()
        for part in (_VERSION, self.model or _weights(model), threat, settings, *_described(attack)):
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
        for tensor in (x, y, ids):
            digest.update(_bytes(tensor))
        return digest.hexdigest()[:32]

    def load(self, key: str) -> AttackOutcome | None:
        """The outcome kept under ``key``; None when there is none, or the file is damaged."""
        path = self.folder / f"{key}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                numbers = json.loads((file.metadata() or {})["numbers"])
                return AttackOutcome(**{name: file.get_tensor(name) for name in file.keys()}, **numbers)  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError):
            return None

    def save(self, key: str, outcome: AttackOutcome) -> None:
        """Keeps ``outcome`` under ``key``: wholly or, when cut off, not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
        tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in values.items() if name not in tensors}
        path = self.folder / f"{key}.safetensors"
        draft = path.with_suffix(f".{os.getpid()}.part")
        save_file(tensors, draft, {"numbers": json.dumps(numbers)})
        draft.replace(path)


def _described(attack: object) -> Iterator[object]:
    """Name and hyper-parameters of an attack, tensors by their bytes."""
    yield type(attack).__qualname__
    if not is_dataclass(attack):
        raise UnsupportedError(f"{type(attack).__name__} is no dataclass: its outcome cannot be named by its settings")
    for field in fields(attack):
        value = getattr(attack, field.name)
        yield field.name
        yield _bytes(value) if isinstance(value, Tensor) else value


def _weights(model: Model) -> bytes:
    if not isinstance(model, nn.Module):
        raise UnsupportedError("the model is no nn.Module with weights to hash: name it, ShardStore(model=…)")
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.digest()


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    return repr((plain.dtype, tuple(plain.shape))).encode() + plain.view(-1).view(torch.uint8).numpy().tobytes()
