"""Scans model files for code, without executing anything: what is not known to be harmless is not clean."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors

from ..errors import ModelError
from .archive import read_archive
from .files import read_bytes, sha256
from .formats import Format, identify
from .pickle_machine import Reason, Trace, follow

Status = Literal["clean", "dangerous", "unknown"]

_SHOWN = 8
_MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_OBJECTS = re.compile(rb"'[|<>=]?O\d*'")
_MAX_UNPACKED = 8 * 2**30


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a scan found of one file.

    Attributes:
        status: ``clean`` when everything was examined and is harmless, ``dangerous`` when it would run code,
            ``unknown`` when it could not be examined, or uses names that weights do not need.
        reasons: why it is not clean.
        names: globals that its pickles use.
    """

    path: str
    format: str
    status: Status
    reasons: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    sha256: str = ""


def scan(paths: Iterable[str | Path]) -> list[ScanReport]:
    """Scans files and, walked through, folders; links inside a folder that lead out of it are not followed.

    Raises:
        ModelError: for a path that does not exist.
    """
    return [report for path in paths for report in _scan_path(Path(path))]


def scan_bytes(content: bytes, path: str) -> ScanReport:
    """Scans the content of one file; ``path`` is only named."""
    kind = identify(content)
    trace = _examine(kind, content)
    status: Status = "clean"
    if trace.reasons:
        status = "dangerous" if any(reason.harmful for reason in trace.reasons) else "unknown"
    texts = [reason.text for reason in sorted(trace.reasons, key=lambda reason: not reason.harmful)]
    if len(texts) > _SHOWN:
        texts = [*texts[:_SHOWN], f"and {len(texts) - _SHOWN} more"]
    return ScanReport(path, kind.value, status, tuple(texts), tuple(trace.names), sha256(content))


def _scan_path(path: Path) -> Iterator[ScanReport]:
    if not path.is_dir():
        if not path.exists():
            raise ModelError(f"{path}: no such file or folder")
        yield _scan_file(path)
        return
    root = path.resolve()
    for folder, folders, files in os.walk(path, followlinks=False):
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*files, *linked]):
            file = Path(folder, name)
            if not file.is_symlink():
                yield _scan_file(file)
            elif not file.resolve().is_relative_to(root):
                yield ScanReport(str(file), "a link", "unknown", ("it leads out of the folder and was not followed",))
        folders.sort()


def _scan_file(path: Path) -> ScanReport:
    try:
        return scan_bytes(read_bytes(path, ModelError, allow_empty=True), str(path))
    except ModelError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return ScanReport(str(path), "not readable", "unknown", (reason,))


def _examine(kind: Format, content: bytes) -> Trace:
    match kind:
        case Format.SAFETENSORS:
            return _safetensors(content)
        case Format.TORCH_ZIP:
            return _torch_zip(content)
        case Format.TORCH_LEGACY:
            return _torch_legacy(content)
        case Format.PICKLE:
            return _pickles(content)
        case Format.NPY:
            return _npy(content)
        case Format.NPZ | Format.ZIP | Format.KERAS | Format.TORCHSCRIPT | Format.EXPORTED:
            return _zip(kind, content)
        case Format.TEXT | Format.IMAGE | Format.EMPTY:
            return Trace()
        case _:
            return Trace(reasons=[Reason(kind.value if kind is not Format.UNKNOWN else "no known model format")])


def _safetensors(content: bytes) -> Trace:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        return Trace(reasons=[Reason(f"damaged safetensors file ({error})")])
    return Trace()


def _torch_zip(content: bytes) -> Trace:
    archive = read_archive(content)
    trace = Trace(reasons=[Reason(problem) for problem in archive.problems])
    roots = {name.partition("/")[0] for name in archive.members}
    if len(roots) > 1:
        trace.reasons.append(Reason("the archive has more than one folder at its root"))
    for name, member in archive.members.items():
        if not _MEMBER.fullmatch(name):
            trace.reasons.append(Reason(f"member {name[:80]!r} does not belong in a checkpoint"))
            _merge(trace, _nested(member))
        elif name.endswith("/data.pkl"):
            _merge(trace, _one_pickle(member))
    if archive.problems:
        _merge(trace, _every_pickle(content))
    return trace


def _one_pickle(content: bytes) -> Trace:
    trace = follow(content)
    if trace.end != len(content) and not trace.reasons:
        trace.reasons.append(Reason("data.pkl goes on after its end"))
    return trace


def _torch_legacy(content: bytes) -> Trace:
    """Magic number, version and machine (plain values), the object, the storages' keys, then raw storages."""
    trace, position = Trace(), 0
    for plain in (True, True, True, False, True):
        part = follow(content, position, frozenset()) if plain else follow(content, position)
        _merge(trace, part)
        if part.reasons:
            break
        position = part.end
    return trace


def _pickles(content: bytes) -> Trace:
    """One pickle after another, as loaders that call ``load`` repeatedly would read them."""
    trace, position = Trace(), 0
    while position < len(content):
        part = follow(content, position)
        _merge(trace, part)
        if part.reasons or part.end <= position:
            break
        position = part.end
    return trace


def _npy(content: bytes) -> Trace:
    """An array's data is plain unless its type is ``object``: then it is a pickle."""
    wide = content[6:7] not in (b"\x01", b"")
    start = 12 if wide else 10
    length = int.from_bytes(content[8:start], "little")
    if not _OBJECTS.search(content[start : start + length]):
        return Trace()
    trace = follow(content, start + length)
    trace.reasons.append(Reason("the array holds pickled Python objects"))
    return trace


def _zip(kind: Format, content: bytes) -> Trace:
    trace = _every_pickle(content)
    if kind is not Format.NPZ:
        trace.reasons.append(Reason(kind.value))
    return trace


def _every_pickle(content: bytes) -> Trace:
    """What the members of any archive hold, found by content."""
    trace = Trace()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > _MAX_UNPACKED:
                return Trace(reasons=[Reason("the archive unpacks to more than can be examined")])
            for info in infos:
                _merge(trace, _nested(archive.read(info)))
    except Exception as error:  # zipfile and its decompressors raise many kinds on hostile input
        trace.reasons.append(Reason(f"the archive cannot be examined in full ({error})"))
    return trace


def _nested(member: bytes) -> Trace:
    match identify(member):
        case Format.PICKLE | Format.TORCH_LEGACY:
            return _pickles(member)
        case Format.NPY:
            return _npy(member)
        case Format.TORCH_ZIP | Format.ZIP | Format.NPZ | Format.KERAS | Format.TORCHSCRIPT | Format.EXPORTED:
            return Trace(reasons=[Reason("an archive inside the archive")])
        case _:
            return Trace()


def _merge(trace: Trace, part: Trace) -> None:
    trace.names.extend(name for name in part.names if name not in trace.names)
    trace.reasons.extend(reason for reason in part.reasons if reason not in trace.reasons)
