"""Whether the files that a spec names are there, told all at once and before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .errors import SpecError
from .spec import Spec


def require_files(spec: Spec) -> None:
    """Looks for each file of the spec.

    Raises:
        SpecError: with one line per file that is not there.
    """
    problems = [
        f"{where}: {name}: no such file or folder (looked in {spec.base_dir.resolve()})"
        for where, name in _named(spec)
        if not _exists(spec.resolve(_file_of(name)))
    ]
    if problems:
        raise SpecError("\n".join(problems))


def _exists(path: Path) -> bool:
    """Also for names that no file system takes: too long, or with a zero byte."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _named(spec: Spec) -> Iterator[tuple[str, str]]:
    """Where a file is named, and its path; importable modules are no files."""
    for where, factory in (("model.factory", spec.model.factory), ("data.factory", spec.data.factory)):
        if factory is not None and ".py:" in factory:
            yield where, factory
    for where, name in (("model.weights", spec.model.weights), ("data.source", spec.data.source)):
        if name is not None:
            yield where, name
    for owner in (*spec.checks, *spec.variants):
        yield from ((owner.id, source) for source in owner.files())


def _file_of(name: str) -> str:
    """``data.py:members`` stands in ``data.py``."""
    return name.rpartition(":")[0] if ".py:" in name else name
