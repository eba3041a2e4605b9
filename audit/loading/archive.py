"""Opens a ZIP archive only when its two directories agree, so that no two readers can see different files in it."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800
_END_SIZE = 22

MAX_MEMBERS = 100_000
MAX_UNPACKED = 64 * 2**30


@dataclass(frozen=True, slots=True)
class Archive:
    """The members of an archive by name. ``problems`` says where its parts disagree; empty when they do not."""

    members: Mapping[str, bytes]
    problems: tuple[str, ...]


def read_archive(content: bytes) -> Archive:
    """Reads all stored members and compares local headers, central directory, checksums and positions."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            problems = _whole(content, archive, infos)
            if not problems:
                problems = [problem for info in infos for problem in _local(content, info)]
            members = {} if problems else {info.filename: archive.read(info) for info in infos}
    except Exception as error:  # zipfile raises many kinds on hostile input
        return Archive({}, (f"damaged ZIP archive ({error})",))
    return Archive(members, tuple(problems))


def _whole(content: bytes, archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> list[str]:
    problems = []
    if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > MAX_UNPACKED:
        problems.append("the ZIP archive unpacks to more than the limit")
    if content[-_END_SIZE : -_END_SIZE + 4] != b"PK\x05\x06" or archive.comment:
        problems.append("the ZIP archive does not end with its directory (a comment, or data behind it)")
    names = [info.filename.casefold() for info in infos]  # PyTorch's reader ignores case
    if len(set(names)) < len(names):
        problems.append("the ZIP archive has two members of one name")
    if not infos or min(info.header_offset for info in infos) != 0:
        problems.append("the ZIP archive has data before its first member")
    return problems


def _local(content: bytes, info: zipfile.ZipInfo) -> list[str]:
    """What the header in front of a member says otherwise than the central directory."""
    header = _LOCAL.unpack_from(content, info.header_offset)
    signature, _, flags, method, _, _, checksum, packed, unpacked, name_size, extra_size = header
    start = info.header_offset + _LOCAL.size
    name = content[start : start + name_size]
    raw_name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    end = start + name_size + extra_size + info.compress_size
    differs = []
    if signature != b"PK\x03\x04" or name != raw_name or info.orig_filename != info.filename:
        differs.append("name")
    if flags != info.flag_bits or method != info.compress_type:
        differs.append("flags")
    if flags & _DESCRIPTOR:
        if not _descriptor_agrees(content, end, info):
            differs.append("checksum or size")
    elif (checksum, packed, unpacked) != (info.CRC, info.compress_size, info.file_size) and packed != 0xFFFFFFFF:
        differs.append("checksum or size")
    problems = [f"ZIP headers disagree on the {what} of {info.filename[:60]!r}" for what in differs]
    if info.flag_bits & _ENCRYPTED:
        problems.append(f"{info.filename[:60]!r} is encrypted")
    if info.compress_type != zipfile.ZIP_STORED:
        problems.append(f"{info.filename[:60]!r} is compressed, which torch.save never does")
    return problems


def _descriptor_agrees(content: bytes, end: int, info: zipfile.ZipInfo) -> bool:
    """Whether the record behind a member repeats the directory's checksum and sizes (in 32 or 64 bits)."""
    expected = (b"PK\x07\x08", info.CRC, info.compress_size, info.file_size)
    for layout in ("<4sIII", "<4sIQQ"):
        size = struct.calcsize(layout)
        if end + size <= len(content) and struct.unpack_from(layout, content, end) == expected:
            return True
    return False
