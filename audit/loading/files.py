"""Reads a file once, so that what was examined and hashed is what is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import AuditError

MAX_BYTES = 16 * 2**30


def read_bytes(path: Path, error: type[AuditError], max_bytes: int = MAX_BYTES, *, allow_empty: bool = False) -> bytes:
    """The content of a regular file.

    Raises:
        AuditError: of type ``error`` when it is missing, no regular file, empty or larger than ``max_bytes``.
    """
    try:
        if path.is_dir():
            raise error(f"{path}: this is a folder, a file was expected")
        if path.exists() and not path.is_file():
            raise error(f"{path}: this is not a regular file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError as problem:
        raise error(f"{path}: no such file") from problem
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({problem})") from problem
    if not content and not allow_empty:
        raise error(f"{path}: the file is empty")
    if len(content) > max_bytes:
        raise error(f"{path}: larger than {max_bytes / 2**30:.3g} GiB, which is the limit")
    return content


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()
