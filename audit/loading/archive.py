"""Opens a ZIP archive only when its two directories agree, so that no two readers can see different files in it."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")

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
    if content[-_END.size : -_END.size + 4] != b"PK\x05\x06" or archive.comment:
        problems.append("the ZIP archive does not end with its directory (a comment, or data behind it)")
    elif not _end_agrees(content, len(infos)):
        problems.append("the ZIP archive's end records disagree on where its directory lies")
    names = [info.filename.casefold() for info in infos]  # PyTorch's reader ignores case
    if len(set(names)) < len(names):
        problems.append("the ZIP archive has two members of one name")
    if not infos or min(info.header_offset for info in infos) != 0:
        problems.append("the ZIP archive has data before its first member")
    return problems


def _end_agrees(content: bytes, members: int) -> bool:
    """Whether the directory ends where the end records begin, with as many entries as they, old and 64-bit, say."""
    found = _END.unpack_from(content, len(content) - _END.size)
    position = len(content) - _END.size
    expected = (found[4], found[5], found[6])
    if content[position - _LOCATOR.size :][:4] == b"PK\x06\x07":
        _, _, at, _ = _LOCATOR.unpack_from(content, position - _LOCATOR.size)
        position -= _LOCATOR.size + _END64.size
        if at != position or content[position : position + 4] != b"PK\x06\x06":
            return False
        expected = _END64.unpack_from(content, position)[7:10]
    same = all(old in (new, 0xFFFF, 0xFFFFFFFF) for old, new in zip(found[4:7], expected, strict=True))
    return same and expected[0] == members and expected[1] + expected[2] == position


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
