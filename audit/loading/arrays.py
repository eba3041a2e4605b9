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
CLASS_NAMES = ("classes", "class_names")
LABEL_NAMES = ("y", "labels", "targets", "label", "y_test", "y_train")

MAX_BYTES = 8 * 2**30
"""Of an archive's arrays once unpacked; they are held in memory."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """Inputs ``(n, ...)``, labels, names of the classes (empty where none are stored), hash of the file or files."""

    inputs: NDArray[Any]
    labels: NDArray[Any]
    classes: tuple[str, ...]
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
                inputs, labels, classes = _pick(archive.files, path)
                named = _texts(archive[classes]) if classes else ()
                return Arrays(archive[inputs], archive[labels], named, digest)
    except DataError:
        raise
    except Exception as error:  # NumPy's reader raises many kinds on damaged files
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
    inputs, labels, classes = _pick(list(files), path)
    digest = hashlib.sha256()
    try:
        for name in filter(None, (inputs, labels, classes)):
            with files[name].open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return Arrays(
            np.load(files[inputs], mmap_mode="r", allow_pickle=False),
            np.load(files[labels], allow_pickle=False),
            _texts(np.load(files[classes], allow_pickle=False)) if classes else (),
            digest.hexdigest(),
        )
    except Exception as error:  # NumPy's reader raises many kinds on damaged files
        raise DataError(f"{path}: cannot be read as .npy ({_cause(error)})") from error


def _texts(names: NDArray[Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in np.atleast_1d(names).tolist())


def _pick(found: list[str], path: Path) -> tuple[str, str, str | None]:
    """The names under which inputs, labels and, where there are any, class names are stored."""
    by_name = {name.casefold(): name for name in found}
    inputs, labels, classes = (
        next((by_name[name] for name in names if name in by_name), None)
        for names in (INPUT_NAMES, LABEL_NAMES, CLASS_NAMES)
    )
    if inputs is None or labels is None:
        raise DataError(
            f"{path}: needs an array x (or {', '.join(INPUT_NAMES[1:4])}) and an array y (or "
            f"{', '.join(LABEL_NAMES[1:4])}); found {', '.join(found[:10]) or 'none'}"
        )
    return inputs, labels, classes


def _cause(error: Exception) -> str:
    if "allow_pickle" in str(error):
        return "it holds Python objects, which are never loaded; store plain numbers"
    return f"{type(error).__name__}: {error}"
