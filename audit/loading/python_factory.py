"""Calls the Python function that a spec names: ``model.py:build`` beside the spec, or ``package.module:callable``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import AuditError
from ..spec_problems import suggestion


@dataclass(frozen=True, slots=True)
class Factory:
    """A callable that the spec names, and the hash of the file it stands in.

    Attributes:
        name: as the spec gives it.
        error: what to raise when it cannot be found or fails.
    """

    name: str
    call: Callable[..., Any]
    sha256: str
    error: type[AuditError]

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        try:
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
    try:
        module = _from_file(base_dir / place, error) if place.endswith(".py") else importlib.import_module(place)
    except AuditError:
        raise
    except Exception as problem:
        raise error(f"{place} cannot be imported{_where(problem)}: {_reason(problem)}") from problem
    call = getattr(module, attribute, None)
    if not callable(call):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error(f"{place} has no callable {attribute!r}. {suggestion(attribute, known)}")
    return Factory(name, call, _source_hash(module), error)


def _from_file(path: Path, error: type[AuditError]) -> ModuleType:
    """Runs the file as a module of its own name space; files beside it can be imported from it."""
    if not path.is_file():
        raise error(f"{path}: no such file")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"_auditorch_factory_{digest}", path)
    if spec is None or spec.loader is None:
        raise error(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its classes can be pickled to worker processes
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    finally:
        sys.path.remove(folder)
    return module


def _source_hash(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    if file is None:
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _where(error: Exception) -> str:
    """`` (file.py:12)``: the innermost line of the user's code."""
    if isinstance(error, SyntaxError):
        return ""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
