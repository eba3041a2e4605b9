"""Hashes a Python file together with what it imports from beside it, so that a change in a helper is noticed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path


def source_hash(file: Path, root: Path, package: str = "") -> str:
    """SHA-256 over ``file`` and, followed statically, every module that it imports from ``root``.

    Args:
        root: the folder where absolute imports are looked up; what lies elsewhere is a library.
        package: only modules of this top-level package are followed, when given.
    """
    seen: dict[Path, bytes] = {}
    waiting = [file.resolve()]
    root = root.resolve()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen[current] = current.read_bytes()
        waiting.extend(_imported(seen[current], current, root, package))
    digest = hashlib.sha256()
    for path in sorted(seen, key=lambda path: path.relative_to(root).as_posix()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + hashlib.sha256(seen[path]).digest())
    return digest.hexdigest()


def _imported(content: bytes, file: Path, root: Path, package: str) -> Iterator[Path]:
    for node in ast.walk(ast.parse(content)):
        match node:
            case ast.Import(names=names):
                modules = [(root, alias.name) for alias in names]
            case ast.ImportFrom(module=module, names=names, level=0):
                modules = [(root, name) for name in (module or "", *(f"{module}.{alias.name}" for alias in names))]
            case ast.ImportFrom(module=module, names=names, level=level):
                base, prefix = file.parents[level - 1], f"{module}." if module else ""
                modules = [(base, name) for name in (module or "", *(prefix + alias.name for alias in names))]
            case _:
                continue
        for base, name in modules:
            if base != root or not package or name.partition(".")[0] == package:
                yield from _files(base, name, root)


def _files(base: Path, name: str, root: Path) -> Iterator[Path]:
    """The files that importing a dotted name runs: the packages on the way and the module itself."""
    place = base
    for part in filter(None, name.split(".")):
        place = place / part
        for file in (place / "__init__.py", place.with_name(place.name + ".py")):
            if file.is_file() and file.resolve().is_relative_to(root):
                yield file.resolve()
