"""A private training on disk: whole or not at all, with a count of every step that was begun.

Two files: ``PATH`` holds tensors (safetensors) and, as its metadata, the rest of the state as JSON; ``PATH.steps`` the
number of steps begun, written before each step touches the data. A step whose result was lost in a crash is in the
second but not in the first.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..attacks.errors import AuditError, UnsupportedError

_STATE = "auditorch.dp_sgd"
_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Saved:
    """A state as it was written.

    Attributes:
        tensors: by name.
        state: plain values.
        begun: steps begun so far, those included whose result was lost.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    begun: int


class Checkpoint:
    """Where one training is kept.

    Args:
        path: of the state; its folder is made.
        fingerprint: of everything that the training depends on; a state with another one is refused.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self._counter = _counter(path)
        self._handle: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AuditError(f"cannot keep the training in {path}: {error.strerror or error}") from error

    def load(self) -> Saved | None:
        """The state, or None where there is none.

        Raises:
            UnsupportedError: when the state is damaged or belongs to another training.
        """
        if not self.path.exists():
            # A training that was killed before its first state was written has begun steps all the same.
            return Saved({}, {}, self._begun()) if self._begun() else None
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads((file.metadata() or {})[_STATE])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            fingerprint = state.pop("fingerprint")
        except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
            raise UnsupportedError(f"{self.path} is no state of a private training ({error}); delete it") from error
        if fingerprint != self.fingerprint:
            raise UnsupportedError(
                f"{self.path} belongs to a training with other data, model or settings, whose steps have been spent: "
                "continue that one, or keep this one elsewhere"
            )
        return Saved(tensors, state, max(self._begun(), int(state["steps"])))

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replaces the state.

        Raises:
            AuditError: when it cannot be written; the old one is then still there.
        """
        metadata = {_STATE: json.dumps({**state, "fingerprint": self.fingerprint})}
        data = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, metadata)
        part: str | None = None
        try:
            handle, part = tempfile.mkstemp(prefix=f".{self.path.name[:40]}.", suffix=".part", dir=self.path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(part).replace(self.path)
        except OSError as error:
            raise AuditError(f"cannot keep the training in {self.path}: {error.strerror or error}") from error
        finally:
            if part is not None:
                with suppress(OSError):
                    Path(part).unlink()

    def begin(self, count: int) -> None:
        """Notes that ``count`` steps have been begun; survives the process, not a failing power supply.

        Raises:
            AuditError: when it cannot be written.
        """
        try:
            if self._handle is None:
                self._handle = os.open(self._counter, os.O_RDWR | os.O_CREAT, 0o644)
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, f"{count:0{_DIGITS}}\n".encode())
        except OSError as error:
            raise AuditError(f"cannot count the steps in {self._counter}: {error.strerror or error}") from error

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _begun(self) -> int:
        try:
            return int(self._counter.read_text("ascii"))
        except (OSError, ValueError):
            return 0


def delete_state(path: Path) -> None:
    """Removes a training that was kept at ``path``, once its result is safe elsewhere."""
    for one in (path, _counter(path)):
        with suppress(OSError):
            one.unlink()


def _counter(path: Path) -> Path:
    return path.with_name(path.name + ".steps")
