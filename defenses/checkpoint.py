"""The state of a training on disk, so that a killed one goes on to the very same weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..attacks.errors import AuditError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where and how often a training saves itself.

    One safetensors file holds all tensors (weights, best weights, optimizer, average, random states) and, as JSON in
    its header, all numbers. It is replaced whole or not at all. A file that another training left there (other weights,
    data, config, objective, torch version or thread count) is not used, and overwritten. It is removed when the
    training ends well; when the training diverges, the last good weights are left beside it.

    Args:
        path: the file; its folder is made.
        every: seconds between two saves; 0 saves after each step.
        key: what else the weights depend on, such as the hash of the data: of the inputs the file itself only knows the
            first and last few.
    """

    path: Path
    every: float = 30.0
    key: str = ""

    @property
    def last_good(self) -> Path:
        """Where the last good weights of a diverged training go."""
        return self.path.with_name(f"{self.path.stem}.last-good.safetensors")


@dataclass(frozen=True, slots=True)
class State:
    """A training at one moment: tensors by name, and plain values."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix.``, without it."""
        return {
            name[len(prefix) + 1 :]: tensor for name, tensor in self.tensors.items() if name.startswith(f"{prefix}.")
        }


class Saver:
    """Reads and writes the file of one training."""

    def __init__(self, checkpoint: Checkpoint, identity: str) -> None:
        self.checkpoint, self._identity = checkpoint, identity
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.checkpoint.every

    def write(self, state: State) -> None:
        """Replaces the file.

        Raises:
            AuditError: when it cannot be written.
        """
        header = {"format": FORMAT, "training": self._identity, "facts": state.facts}
        write_tensors(self.checkpoint.path, state.tensors, {"state": json.dumps(header)})
        self._last = time.monotonic()

    def read(self) -> State | None:
        """What this training saved; None when there is nothing, or not of this training."""
        try:
            with safe_open(self.checkpoint.path, "pt") as file:
                header = json.loads((file.metadata() or {})["state"])
                if header["format"] != FORMAT or header["training"] != self._identity:
                    return None
                return State({name: file.get_tensor(name) for name in file.keys()}, header["facts"])  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def remove(self) -> None:
        with suppress(OSError):
            self.checkpoint.path.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all.

    Raises:
        AuditError: when it cannot be written; the old content is then still there.
    """
    # Clones: safetensors refuses tensors that share memory, such as tied weights.
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata)
    part: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)
    except OSError as error:
        raise AuditError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                Path(part).unlink()


def fingerprint(*parts: object) -> str:
    """Hash of what a training depends on: tensors by dtype, shape and bytes, modules by their tensors, dataclasses by
    their fields, anything else by its ``repr`` without memory addresses."""
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(piece + b"\0")
    return digest.hexdigest()


def _pieces(part: object) -> Iterator[bytes]:
    if isinstance(part, Tensor):
        yield f"{part.dtype}{tuple(part.shape)}".encode()
        yield part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(part, nn.Module):
        yield type(part).__qualname__.encode()
        for name, tensor in part.state_dict().items():
            yield name.encode()
            yield from _pieces(tensor)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield type(part).__qualname__.encode()
        for field in dataclasses.fields(part):
            if field.repr:
                yield field.name.encode()
                yield from _pieces(getattr(part, field.name))
    else:
        yield re.sub(r" at 0x[0-9a-f]+", "", repr(part)).encode()
