"""The scanner against a corpus of hostile files: none is executed, all are refused; honest checkpoints pass."""

import io
import os
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.audit.errors import ModelError, UnsafeModelError
from auditorch.audit.loading.formats import Format, identify
from auditorch.audit.loading.pickle_machine import follow
from auditorch.audit.loading.pickle_scan import scan, scan_bytes
from auditorch.audit.loading.weights import read_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


def text(value: str) -> bytes:
    """BINUNICODE"""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: str) -> bytes:
    """A protocol-2 program that calls ``module.name(*arguments)``."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(map(text, arguments)) + b"tR."


def body(program: bytes) -> bytes:
    return program.removeprefix(b"\x80\x02").removesuffix(b".")


class Runs:
    """Its unpickling creates a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(pickled: bytes, **extra: bytes) -> bytes:
    """A checkpoint as torch.save writes it, with this data.pkl."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, content in extra.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def shell(marker: Path) -> str:
    return f"mkdir '{marker}'"


PROGRAMS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda m: call("os", "system", shell(m)),
    "posix.system": lambda m: call("posix", "system", shell(m)),
    "subprocess": lambda m: call("subprocess", "getoutput", shell(m)),
    "eval": lambda m: call("builtins", "eval", f"__import__('os').mkdir({str(m)!r})"),
    "exec in python 2's name": lambda m: call("__builtin__", "exec", f"import os; os.mkdir({str(m)!r})"),
    "importlib": lambda _: call("importlib", "import_module", "os"),
    "pkgutil": lambda _: call("pkgutil", "resolve_name", "os:system"),
    "pip": lambda _: call("pip", "main", "--version"),
    "collect_env": lambda m: call("torch.utils.collect_env", "run", shell(m)),
    "torch.load": lambda _: call("torch", "load", "other.pt"),
    "storage gadget": lambda _: call("torch.storage", "_load_from_bytes", "x"),
    "attribute path": lambda m: b"\x80\x04" + text("os") + text("path.os.system") + b"\x93(" + text(shell(m)) + b"tR.",
    "stack global": lambda m: b"\x80\x04" + text("os") + text("system") + b"\x93(" + text(shell(m)) + b"tR.",
    "name through memo": lambda m: (
        b"\x80\x04" + text("system") + b"q\x00" + text("os") + b"q\x010h\x01h\x00\x93(" + text(shell(m)) + b"tR."
    ),
    "memo overwritten": lambda m: (
        b"\x80\x04" + text("collections") + b"q\x000" + text("posix") + b"q\x000h\x00" + text("system") + b"\x93("
        b"" + text(shell(m)) + b"tR."
    ),
    "memoize counts overwritten entries": lambda m: (
        b"\x80\x04" + text("posix") + b"\x940" + text("x") + b"q\x050h\x00" + text("system") + b"\x93("
        b"" + text(shell(m)) + b"tR."
    ),
    "computed name": lambda m: (
        b"\x80\x04c_codecs\nencode\n("
        + text("os")
        + text("utf8")
        + b"tR"
        + text("system")
        + b"\x93("
        + text(shell(m))
        + b"tR."
    ),
    "inst": lambda m: b"(" + text(shell(m)) + b"ios\nsystem\n.",
    "obj": lambda m: b"\x80\x02(cos\nsystem\n" + text(shell(m)) + b"o.",
    "newobj": lambda m: b"\x80\x02csubprocess\nPopen\n" + text(shell(m)) + b"\x85\x81.",
    "newobj_ex": lambda m: b"\x80\x04csubprocess\nPopen\n" + text(shell(m)) + b"\x85}\x92.",
    "protocol 0": lambda m: f"cos\nsystem\n(S{shell(m)!r}\ntR.".encode(),
    "build sets state": lambda m: b"\x80\x02ccollections\nOrderedDict\n)R}" + text("x") + b"cos\nsystem\nsb.",
    "build on a class": lambda _: b"\x80\x02ccollections\nCounter\n}" + text("__setstate__") + text("x") + b"sb.",
    "build on a tensor's rebuilder": lambda _: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + text("x") + b"Nsb.",
    "extension registry": lambda _: b"\x80\x02\x82\x01)R.",
    "calls a result": lambda _: b"\x80\x02ccollections\nOrderedDict\n)R)R.",
    "calls a type": lambda _: b"\x80\x02ctorch\nFloatStorage\n)R.",
    "append to a function": lambda _: b"\x80\x02c_codecs\nencode\nNa.",
    "nested pickle": lambda m: (
        b"\x80\x02cpickle\nloads\n(c_codecs\nencode\n("
        + text(call("os", "system", shell(m)).decode("latin1"))
        + text("latin1")
        + b"tRtR."
    ),
    "runs, then is truncated": lambda m: call("os", "system", shell(m))[:-1],
    "runs, then breaks": lambda m: call("os", "system", shell(m))[:-1] + b"\xff\xff",
    "second pickle behind the first": lambda m: b"\x80\x02}." + call("os", "system", shell(m)),
    "hidden behind junk": lambda m: b"\x80\x02" + b"N0" * 5000 + body(call("os", "system", shell(m))) + b".",
    "reduce object": lambda m: pickle.dumps(Runs(m)),
    "in a list of a dict": lambda m: pickle.dumps({"a": [torch.zeros(1).numpy().tolist(), Runs(m)]}, protocol=2),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("wrap", ["bare", "checkpoint"])
def test_hostile_pickles_are_refused_and_not_executed(name: str, wrap: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    program = PROGRAMS[name](marker)
    file = tmp_path / "model.safetensors"  # a wrong name on purpose
    file.write_bytes(program if wrap == "bare" else zipped(program))
    with pytest.raises(UnsafeModelError) as refused:
        read_weights(file)
    assert refused.value.exit_code == 3
    (report,) = scan([file])
    assert report.status in ("dangerous", "unknown")
    assert report.reasons
    assert not marker.exists()


def test_the_corpus_is_not_harmless(tmp_path: Path) -> None:
    """The programs do run under an unsafe loader, so refusing them means something."""
    marker = tmp_path / "executed"
    for name in ("os.system", "stack global", "name through memo", "memo overwritten", "inst", "obj", "nested pickle"):
        pickle.loads(PROGRAMS[name](marker))
        assert marker.is_dir(), name
        marker.rmdir()


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("name through memo", "os.system"),
        ("memo overwritten", "posix.system"),
        ("memoize counts overwritten entries", "posix.system"),
        ("exec in python 2's name", "builtins.exec"),
        ("nested pickle", "pickle.loads"),
        ("second pickle behind the first", "os.system"),
        ("pip", "pip.main"),
        ("collect_env", "torch.utils.collect_env.run"),
    ],
)
def test_the_reason_names_the_global(name: str, reached: str, tmp_path: Path) -> None:
    report = scan_bytes(PROGRAMS[name](tmp_path / "m"), "f")
    assert report.status == "dangerous"
    assert reached in report.names
    assert any(reached in reason for reason in report.reasons)


def _checkpoint() -> bytes:
    return saved(nn.Linear(2, 2).state_dict())


def _central(content: bytes, change: Callable[[bytearray, int], None], name: bytes) -> bytes:
    """The archive with its central directory entry for a member changed."""
    data = bytearray(content)
    position = data.rfind(b"PK\x01\x02", 0, data.rfind(name))
    change(data, position)
    return bytes(data)


def _evil_in_second_view() -> bytes:
    """The central directory names data.pkl, the local header something else."""
    content = bytearray(_checkpoint())
    at = content.find(b"archive/data.pkl")
    content[at : at + 16] = b"archive/data.txt"
    return bytes(content)


def _set(offset: int, value: bytes) -> Callable[[bytearray, int], None]:
    def change(data: bytearray, position: int) -> None:
        data[position + offset : position + offset + len(value)] = value

    return change


def _duplicate() -> bytes:
    buffer = io.BytesIO(zipped(b"\x80\x02}."))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/DATA.PKL", call("os", "getcwd"))
    return buffer.getvalue()


def _deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return buffer.getvalue()


def _end(content: bytes, offset: int, by: int) -> bytes:
    """The archive with one byte of its last record changed."""
    data = bytearray(content)
    data[len(data) - 22 + offset] += by
    return bytes(data)


def _flip_data() -> bytes:
    content = bytearray(_checkpoint())
    at = content.find(b"weight")
    content[at] ^= 1
    return bytes(content)


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "local name differs": (_evil_in_second_view, "damaged ZIP|disagree on the name"),
    "flag differs": (lambda: _central(_checkpoint(), _set(8, b"\x08\x00"), b"archive/data.pkl"), "flags"),
    "encrypted": (lambda: _central(_checkpoint(), _set(8, b"\x09\x08"), b"archive/data.pkl"), "encrypted|flags"),
    "crc differs": (lambda: _central(_checkpoint(), _set(16, b"\1\2\3\4"), b"archive/data.pkl"), "checksum"),
    "size differs": (
        lambda: _central(_checkpoint(), _set(20, b"\5\0\0\0\5\0\0\0"), b"archive/data.pkl"),
        "checksum|size",
    ),
    "content changed": (_flip_data, "CRC"),
    "two names that differ in case": (_duplicate, "two members of one name"),
    "compressed": (_deflated, "compressed"),
    "data behind the directory": (lambda: _checkpoint() + b"extra", "does not end with its directory"),
    "second archive behind": (lambda: _checkpoint() + zipped(call("os", "getcwd")), "before its first|does not end"),
    "end points elsewhere": (lambda: _end(_checkpoint(), 16, 1), "end records disagree|damaged|before its first"),
    "end counts differently": (lambda: _end(_checkpoint(), 10, 1), "end records disagree|damaged"),
    "old end differs from the new": (lambda: _end(_checkpoint(), 12, 1), "end records disagree|damaged"),
    "truncated": (lambda: _checkpoint()[:-40], "."),
    "foreign member": (lambda: zipped(b"\x80\x02}.", archive__extra=b"hello"), "does not belong"),
    "foreign pickle": (lambda: zipped(b"\x80\x02}.", archive__x=call("os", "system", "x")), "os.system"),
    "two roots": (lambda: zipped(b"\x80\x02}.", other__version=b"3"), "more than one folder"),
    "pickle goes on": (lambda: zipped(b"\x80\x02}.junk"), "goes on after its end"),
    "unfinished pickle": (lambda: zipped(b"\x80\x02}"), "truncated"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(50), "7z"),
    "gzip": (lambda: b"\x1f\x8b\x08\x00" + bytes(50), "compressed"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "torchscript": (lambda: zipped(b"\x80\x02}.", archive__constants=b"", archive__code__m=b"x"), "TorchScript"),
    "keras": (lambda: zipped(b"\x80\x02}.", **{"config.json": b"{}", "metadata.json": b"{}"}), "Keras"),
    "noise": (lambda: bytes(range(128, 256)) * 3, "no known model format"),
    "text": (lambda: b"import os\n", "text"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_files_that_disagree_with_themselves_are_refused(name: str, tmp_path: Path) -> None:
    make, reason = ARCHIVES[name]
    file = tmp_path / "model.pt"
    file.write_bytes(make())
    with pytest.raises(UnsafeModelError, match=reason):
        read_weights(file)


def test_tar_and_its_polyglots_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    assert identify(buffer.getvalue()) is Format.TAR
    polyglot = bytearray(saved({"a": torch.zeros(300)}, _use_new_zipfile_serialization=False))
    polyglot[257:262] = b"ustar"
    file = tmp_path / "m.pt"
    for content in (buffer.getvalue(), bytes(polyglot)):
        file.write_bytes(content)
        with pytest.raises(UnsafeModelError, match="TAR"):
            read_weights(file)


def test_legacy_checkpoints_are_followed_to_the_object(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    hostile = saved({"a": torch.zeros(2), "b": Runs(marker)}, _use_new_zipfile_serialization=False)
    report = scan_bytes(hostile, "f")
    assert report.format == Format.TORCH_LEGACY.value
    assert report.status == "dangerous"
    assert "posix.mkdir" in report.names
    file = tmp_path / "m.pt"
    file.write_bytes(hostile)
    with pytest.raises(UnsafeModelError, match=r"posix\.mkdir"):
        read_weights(file)
    assert not marker.exists()


HONEST: dict[str, Callable[[], Any]] = {
    "state dict": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(),
    "nested": lambda: {"epoch": 3, "state_dict": nn.Linear(2, 2).state_dict(), "lr": 0.1, "name": "x", "best": None},
    "bf16": lambda: {"w": torch.ones(3, dtype=torch.bfloat16)},
    "int8": lambda: {"w": torch.ones(3, dtype=torch.int8), "b": torch.ones(2, dtype=torch.bool)},
    "float8": lambda: {"w": torch.ones(3).to(torch.float8_e4m3fn)},
    "ordered": lambda: OrderedDict(w=torch.ones(2), v=torch.zeros(1, dtype=torch.complex64)),
    "parameters": lambda: {"w": nn.Parameter(torch.ones(2))},
    "values": lambda: {"w": torch.ones(1), "s": torch.Size([2]), "d": torch.float16, "b": b"xyz", "t": (1, {2}, 3j)},
    "shared and views": lambda: (lambda w: {"w": w, "v": w[:2], "t": w.T})(torch.arange(9.0).view(3, 3)),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("legacy", [False, True])
def test_honest_checkpoints_are_clean(name: str, legacy: bool) -> None:
    report = scan_bytes(saved(HONEST[name](), _use_new_zipfile_serialization=not legacy), "f")
    assert report.reasons == ()
    assert report.status == "clean"


def test_an_optimizer_beside_the_weights_is_clean_and_the_weights_are_found(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save({"model_state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "m.pt")
    weights = read_weights(tmp_path / "m.pt")
    assert torch.equal(weights.tensors["weight"], model.weight)


def test_numpy_arrays_with_objects_are_not_clean(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "plain.npy", np.ones(3))
    np.savez(tmp_path / "plain.npz", x=np.ones(3), y=np.ones(2))
    np.save(tmp_path / "objects.npy", np.array([Runs(tmp_path / "m")], dtype=object))
    np.savez(tmp_path / "objects.npz", x=np.array([Runs(tmp_path / "m")], dtype=object))
    status = {Path(report.path).name: report.status for report in scan([tmp_path])}
    assert status == {
        "plain.npy": "clean",
        "plain.npz": "clean",
        "objects.npy": "dangerous",
        "objects.npz": "dangerous",
    }


def test_folders_are_walked_and_links_out_are_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "evil.bin").write_bytes(call("os", "system", "x"))
    (root / "sub" / "evil.txt").write_bytes(call("os", "system", "x"))
    (root / "empty.bin").write_bytes(b"")
    (root / "picture").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9))
    os.mkfifo(root / "pipe")
    (root / "file_link").symlink_to(outside / "evil.bin")
    (root / "folder_link").symlink_to(outside)
    found = {Path(report.path).relative_to(root).as_posix(): report for report in scan([root])}
    assert found["sub/evil.txt"].status == "dangerous"
    assert (found["empty.bin"].status, found["picture"].status) == ("clean", "clean")
    assert found["pipe"].reasons == ("this is not a regular file",)
    assert set(found) == {"sub/evil.txt", "empty.bin", "picture", "pipe", "file_link", "folder_link"}
    assert "not followed" in found["file_link"].reasons[0]
    with pytest.raises(ModelError, match="no such file"):
        scan([tmp_path / "absent"])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_no_damage_to_a_checkpoint_crashes_the_scan(data: st.DataObject) -> None:
    content = bytearray(zipped(PROGRAMS["stack global"](Path("m"))))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    report = scan_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]), "f")
    assert report.status != "clean" or report.format == Format.TEXT.value or "os.system" not in report.names


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_no_program_that_reaches_a_foreign_name_is_clean(program: bytes) -> None:
    """Whatever instructions come first, a global that is reached is seen or the program is refused."""
    trace = follow(b"\x80\x02" + program + b"cos\nsystem\n.")
    names = [op.name for op, _, _ in _instructions(b"\x80\x02" + program + b"cos\nsystem\n.")]
    if trace.reasons == []:
        assert "GLOBAL" not in names


def _instructions(program: bytes) -> list[Any]:
    found = []
    try:
        found.extend(pickletools.genops(program))
    except Exception:
        return found
    return found
