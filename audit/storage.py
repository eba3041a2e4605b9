"""Files of the output folder: whole or not at all, owned by one run at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError

LOCK = ".lock"
_PROBE_BYTES = 1 << 16
_BUSY = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes ``path`` so that at any moment, also after a crash, it holds all of the old or all of the new bytes.

    Raises:
        OutputError: when it cannot be written; the old content is then still there.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}. {_advice(error)}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def owned(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Makes the folder, sees that it takes files, and keeps other runs out of it until the block ends.

    The lock is the operating system's: it goes with the process, however that ends. With ``wait`` another run's
    end is waited for.

    Raises:
        OutputError: when the folder cannot be written, or another run is using it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(
            f"the output folder {directory} cannot be written: {error.strerror or error}. {_advice(error)}"
        ) from error
    try:
        _lock(handle, directory, wait=wait)
        _note_owner(handle)
        _probe(directory)
        _remove_leftovers(directory)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, directory: Path, *, wait: bool) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _BUSY:
            return  # a file system without locks
        owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip() if hasattr(os, "pread") else ""
        raise OutputError(
            f"another run{f' (process {owner})' if owner else ''} is writing to {directory}; "
            "wait for it, or choose another folder with -o"
        ) from error


def _note_owner(handle: int) -> None:
    with suppress(OSError):  # a full disk is told by the probe
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())


def _probe(directory: Path) -> None:
    probe = directory / f".probe.{os.getpid()}"
    write_atomic(probe, bytes(_PROBE_BYTES))
    probe.unlink()


def _remove_leftovers(directory: Path) -> None:
    """Unfinished files of a run that was killed."""
    for name in (".", "results", "evidence", "evidence/*"):
        for part in directory.glob(f"{name}/.*.part"):
            with suppress(OSError):
                part.unlink()


def _sync_folder(directory: Path) -> None:
    """Makes a rename durable; not every system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "Free some space and run again: finished results are kept"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "Choose a folder that you may write to with -o"
        case _:
            return "Choose another folder with -o"
