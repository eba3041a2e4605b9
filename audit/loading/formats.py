"""Tells file formats apart by content, never by name."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import zipfile
from enum import Enum

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py: first value of the format before PyTorch 1.6

_MAX_HEADER = 100_000_000  # the limit of the safetensors library

_SIGNATURES = (
    (b"7z\xbc\xaf\x27\x1c", "SEVEN_ZIP"),
    (b"\x1f\x8b", "COMPRESSED"),
    (b"BZh", "COMPRESSED"),
    (b"\xfd7zXZ\x00", "COMPRESSED"),
    (b"\x28\xb5\x2f\xfd", "COMPRESSED"),
    (b"Rar!\x1a\x07", "COMPRESSED"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"GGUF", "GGUF"),
    (b"\x93NUMPY", "NPY"),
    (b"\x89PNG\r\n\x1a\n", "IMAGE"),
    (b"\xff\xd8\xff", "IMAGE"),
    (b"GIF8", "IMAGE"),
)


class Format(Enum):
    """What a file is; the value is what a person reads."""

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "a PyTorch checkpoint"
    TORCH_LEGACY = "a PyTorch checkpoint of the format before 1.6"
    TORCHSCRIPT = "TorchScript, which can run code when it is loaded"
    EXPORTED = "a torch.export program (.pt2)"
    ONNX = "ONNX"
    GGUF = "GGUF"
    HDF5 = "HDF5 (Keras models in it can hold Lambda layers, which run code)"
    KERAS = "a Keras archive, whose Lambda layers can run code"
    NPY = "a NumPy array"
    NPZ = "a NumPy archive"
    ZIP = "a ZIP archive of no known model format"
    TAR = "a TAR archive"
    SEVEN_ZIP = "a 7z archive, whose content cannot be examined"
    COMPRESSED = "a compressed file, whose content cannot be examined"
    PICKLE = "a bare pickle"
    TEXT = "text"
    IMAGE = "an image"
    EMPTY = "empty"
    UNKNOWN = "of no known format"


def identify(content: bytes) -> Format:
    """The format of a file with this content."""
    if not content:
        return Format.EMPTY
    for signature, name in _SIGNATURES:
        if content.startswith(signature):
            return Format[name]
    if content.startswith(b"PK\x03\x04"):
        return _zip_kind(content)
    if _is_safetensors(content):
        return Format.SAFETENSORS
    if content[257:262] == b"ustar":
        return Format.TAR
    if _is_pickle(content):
        return Format.TORCH_LEGACY if _has_torch_magic(content) else Format.PICKLE
    if _is_onnx(content):
        return Format.ONNX
    return Format.TEXT if _is_text(content) else Format.UNKNOWN


def _is_safetensors(content: bytes) -> bool:
    """Eight bytes of header length, then that much JSON."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or not 2 <= length <= min(len(content) - 8, _MAX_HEADER) or content[8:9] != b"{":
        return False
    try:
        return isinstance(json.loads(content[8 : 8 + length]), dict)
    except (ValueError, RecursionError):
        return False


def _zip_kind(content: bytes) -> Format:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises many kinds on hostile input
        return Format.ZIP
    tails = {name.partition("/")[2] for name in names}
    if "config.json" in names and "metadata.json" in names:
        return Format.KERAS
    if "constants.pkl" in tails or any(tail.startswith("code/") for tail in tails):
        return Format.TORCHSCRIPT
    if any(tail.startswith("models/") or tail.endswith("serialized_exported_program.json") for tail in tails):
        return Format.EXPORTED
    if "data.pkl" in tails:
        return Format.TORCH_ZIP
    return Format.NPZ if names and all(name.endswith(".npy") for name in names) else Format.ZIP


def _is_pickle(content: bytes) -> bool:
    """Whether the first operations read as a pickle that does something; text can look like one by accident."""
    if content[:1] == b"\x80":
        return len(content) > 1 and content[1] <= pickle.HIGHEST_PROTOCOL
    seen = 0
    try:
        for opcode, _, _ in pickletools.genops(content):
            seen += 1
            if opcode.name == "STOP":
                return seen > 1
            if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL", "REDUCE"):
                return True
    except Exception:
        return False
    return False


def _has_torch_magic(content: bytes) -> bool:
    try:
        for opcode, argument, _ in pickletools.genops(content[:64]):
            if opcode.name in ("LONG1", "LONG4"):
                return argument == _TORCH_MAGIC
    except Exception:
        return False
    return False


def _is_onnx(content: bytes) -> bool:
    """A protobuf that starts with a small ``ir_version`` (field 1), then a producer name or another field."""
    return len(content) > 16 and content[0] == 0x08 and 1 <= content[1] <= 20 and content[2] in (0x12, 0x3A, 0x42)


def _is_text(content: bytes) -> bool:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t\f" for character in text)
