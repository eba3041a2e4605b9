"""Reads arrays from an ``.npz`` file, or memory-maps those of a folder of ``.npy`` files."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

INPUT_NAMES = ("x", "images", "data", "inputs", "x_test", "x_train")
LABEL_NAMES = ("y", "labels", "targets", "label", "y_test", "y_train")

MAX_BYTES = 8 * 2**30
"""Of an archive's arrays once unpacked; they are held in memory."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """Inputs ``(n, ...)``, labels, and the hash of the file or files."""

    inputs: NDArray[Any]
    labels: NDArray[Any]
    sha256: str


def read_arrays(path: Path) -> Arrays:
    """Reads ``.npz`` by content, or the ``.npy`` files of a folder.

    Raises:
        DataError: when it is no NumPy archive, has Python objects inside, or no inputs and labels by known names.
    """
    return _from_folder(path) if path.is_dir() else _from_archive(path)


def _from_archive(path: Path) -> Arrays:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check_archive(file, path)
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                inputs, labels = _pick(archive.files, path)
                return Arrays(archive[inputs], archive[labels], digest)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as .npz ({_cause(error)})") from error


def _check_archive(file: BinaryIO, path: Path) -> None:
    file.seek(0)
    if not zipfile.is_zipfile(file):
        raise DataError(f"{path}: not an .npz file; save one with numpy.savez_compressed(path, x=images, y=labels)")
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise DataError(
            f"{path}: {size / 2**30:.3g} GiB once unpacked, more than the {MAX_BYTES / 2**30:.3g} GiB an archive may "
            "have; save x.npy and y.npy in a folder and give the folder, which is read a piece at a time"
        )


def _from_folder(path: Path) -> Arrays:
    files = {file.stem: file for file in sorted(path.glob("*.npy"))}
    inputs, labels = (files[name] for name in _pick(list(files), path))
    digest = hashlib.sha256()
    for file in (inputs, labels):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    try:
        return Arrays(
            np.load(inputs, mmap_mode="r", allow_pickle=False), np.load(labels, allow_pickle=False), digest.hexdigest()
        )
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as .npy ({_cause(error)})") from error


def _pick(found: list[str], path: Path) -> tuple[str, str]:
    by_name = {name.casefold(): name for name in found}
    inputs = next((by_name[name] for name in INPUT_NAMES if name in by_name), None)
    labels = next((by_name[name] for name in LABEL_NAMES if name in by_name), None)
    if inputs is None or labels is None:
        raise DataError(
            f"{path}: needs an array x (or {', '.join(INPUT_NAMES[1:4])}) and an array y (or "
            f"{', '.join(LABEL_NAMES[1:4])}); found {', '.join(found[:10]) or 'none'}"
        )
    return inputs, labels


def _cause(error: Exception) -> str:
    if "allow_pickle" in str(error):
        return "it holds Python objects, which are never loaded; store plain numbers"
    return f"{type(error).__name__}: {error}"
