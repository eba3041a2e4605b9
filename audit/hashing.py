"""Hashes of the data that a spec names besides its samples."""

from __future__ import annotations

from pathlib import Path

from .cache import stable_hash
from .context import Sources
from .errors import DataError
from .spec import Spec
from .storage import file_sha256


def source_sha256(source: str, spec: Spec, sources: Sources) -> str:
    """Hash of a file, of a folder (names and contents), or of what a factory ``file.py:callable`` returns.

    Raises:
        DataError: when it is not there or cannot be read.
    """
    if ".py:" in source:
        return sources(source).sha256
    path = spec.resolve(source)
    try:
        return _folder_sha256(path) if path.is_dir() else file_sha256(path)
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such file or folder (looked in {spec.base_dir})") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be read ({error})") from error


def _folder_sha256(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return stable_hash([[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files])
