"""Results kept between runs, each under a key of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..reports.record import SCHEMA_VERSION, Evidence, Part
from .storage import file_sha256, write_atomic

P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class Key:
    """What a result depends on, and the hash of that."""

    facts: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        return stable_hash({**self.facts, "schema": SCHEMA_VERSION})


@dataclass(frozen=True, slots=True)
class Cache:
    """``results/<key>.json`` in the output folder: facts and result.

    A result counts only while all of its evidence is in place with the recorded hashes.
    """

    directory: Path
    fresh: bool = False

    def get(self, key: Key, kind: type[P]) -> P | None:
        """The kept result, or None when there is none or it cannot be trusted."""
        if self.fresh:
            return None
        try:
            content = json.loads(self._path(key).read_bytes())
            result = kind.model_validate(content["result"])
        except (OSError, ValueError, ValidationError, KeyError, TypeError):
            return None
        evidence: tuple[Evidence, ...] = getattr(result, "evidence", ())
        return result if all(intact(self.directory, item) for item in evidence) else None

    def put(self, key: Key, result: P) -> P:
        """Keeps a result; returns it as a later run will read it.

        Raises:
            OutputError: when it cannot be written.
        """
        content = {"key": dict(key.facts), "result": json.loads(result.model_dump_json())}
        write_atomic(self._path(key), (json.dumps(content, indent=1) + "\n").encode())
        return type(result).model_validate(content["result"])

    def _path(self, key: Key) -> Path:
        return self.directory / "results" / f"{key.sha256}.json"


def intact(directory: Path, evidence: Evidence) -> bool:
    """Whether an evidence file is in place and unchanged."""
    try:
        return file_sha256(directory / evidence.path) == evidence.sha256
    except OSError:
        return False


def stable_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON of plain values: the same in every process and version of Python."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str).encode()


def seed_for(seed: int, *names: str) -> int:
    """A seed of 31 bits (every library takes that) for one purpose, derived from the audit's."""
    return int(stable_hash([seed, *names])[:8], 16) >> 1
