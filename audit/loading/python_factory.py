"""Calls the Python function that a spec names: ``model.py:build`` beside the spec, or ``package.module:callable``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import AuditError
from ..spec_problems import suggestion
from .sources import source_hash

_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


@dataclass(frozen=True, slots=True)
class Factory:
    """A callable that the spec names.

    Attributes:
        name: as the spec gives it.
        sha256: hash of its file and of what that imports from beside it.
        folder: where its file's neighbours are imported from; None for an installed package.
        error: what to raise when it fails.
    """

    name: str
    call: Callable[..., Any]
    sha256: str
    folder: Path | None
    error: type[AuditError]

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        try:
            with _importable(self.folder):
                return self.call(**arguments)
        except AuditError:
            raise
        except Exception as error:
            raise self.error(f"{self.name} failed{_where(error)}: {_reason(error)}") from error


def load_factory(name: str, base_dir: Path, error: type[AuditError]) -> Factory:
    """Imports the module and finds the callable.

    Raises:
        AuditError: of type ``error`` when there is no such file, module or callable, or the import fails.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute.isidentifier():
        raise error(f"{name!r} is no factory: write file.py:callable or package.module:callable")
    file = base_dir / place if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise error(f"{file}: no such file")
    try:
        module = importlib.import_module(place) if file is None else _run(file)
        digest = _package_hash(module) if file is None else source_hash(file, file.parent)
    except Exception as problem:
        raise error(f"{place} cannot be imported{_where(problem)}: {_reason(problem)}") from problem
    call = getattr(module, attribute, None)
    if not callable(call):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error(f"{place} has no callable {attribute!r}. {suggestion(attribute, known)}")
    return Factory(name, call, digest, file.parent.resolve() if file else None, error)


def _run(file: Path) -> ModuleType:
    """Runs the file as a module of its own name space."""
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"_auditorch_factory_{digest}", file)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its classes can be pickled to worker processes
    try:
        with _importable(file.parent.resolve()):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Lets the factory import what lies beside its file."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _package_hash(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        return ""
    above = Path(file).resolve().parents[module.__name__.count(".") + Path(file).name.startswith("__init__.")]
    return source_hash(Path(file), above, module.__name__.partition(".")[0])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _where(error: Exception) -> str:
    """`` (file.py:12)``: the innermost line that is neither ours nor an installed library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", str(Path(__file__).parent), *_LIBRARIES))]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
