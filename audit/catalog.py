"""Describes what is registered, for ``list`` and ``show``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from . import registry
from .errors import AuditError, SpecError
from .registry import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)


def listing(kind: Kind) -> list[tuple[str, str]]:
    """Name and one sentence for everything registered as ``kind``."""
    return [(name, _summary(kind, name)) for name in registry.names(kind)]


def metrics() -> list[tuple[str, str]]:
    """``check.metric`` and what it means, for every check."""
    rows = []
    for name in registry.names("checks"):
        check = _loaded("checks", name)
        rows += [(f"{name}.{metric}", text) for metric, text in getattr(check, "metrics", {}).items()]
    return rows


def description(name: str) -> str:
    """Everything there is to say of a check, attack or defense; of each when the name stands for several.

    Raises:
        SpecError: for an unknown name, with the nearest one.
    """
    kinds: list[Kind] = [kind for kind in KINDS if name in registry.names(kind)]
    if not kinds:
        raise SpecError(
            registry.unknown("check, attack or defense", name, [n for k in KINDS for n in registry.names(k)])
        )
    return "\n\n".join("\n".join(_describe(kind, name, registry.load(kind, name))) for kind in kinds)


def _describe(kind: Kind, name: str, cls: Any) -> Iterator[str]:
    title = getattr(cls, "title", "")
    yield f"{kind.removesuffix('s')} {name}" + (f": {title}" if title else "")
    if getattr(cls, "question", ""):
        yield cls.question
    yield ""
    yield inspect.getdoc(cls) or ""
    yield from _section("Options", [*_fields(cls)])
    yield from _section("Metrics", [f"{key}: {text}" for key, text in getattr(cls, "metrics", {}).items()])
    yield from _section("Needs", sorted(getattr(cls, "requires", ())) if kind == "checks" else [])
    yield from _section("Examines", sorted(getattr(cls, "modalities", ())))
    yield from _section("Norms", list(getattr(cls, "norms", ())) if kind == "attacks" else [])
    yield from _section("Cost", [cls.cost] if getattr(cls, "cost", "") else [])
    yield from _section("References", list(getattr(cls, "references", ())))
    yield from _section("Standards", list(getattr(cls, "standards", ())))


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"{title}:", *(f"  {line}" for line in lines)] if lines else []


def _fields(cls: Any) -> Iterator[str]:
    if isinstance(cls, type) and issubclass(cls, BaseModel):
        for name, field in cls.model_fields.items():
            default = field.get_default(call_default_factory=False)
            shown = "required" if field.is_required() or default is PydanticUndefined else f"default {_value(default)}"
            yield f"{name} ({_type(field.annotation)}, {shown})" + (
                f": {field.description}" if field.description else ""
            )
    elif dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            shown = "required" if required else f"default {_value(field.default)}"
            yield f"{field.name} ({_type(field.type)}, {shown})"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value) if value != "" else "empty"


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else None
    if text is None:
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "").replace("NoneType", "none").replace("None", "none")


def _summary(kind: Kind, name: str) -> str:
    cls = _loaded(kind, name)
    if isinstance(cls, str):
        return cls
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _loaded(kind: Kind, name: str) -> Any:
    """The class, or a sentence when it cannot be imported (an extra is missing, an extension is broken)."""
    try:
        return registry.load(kind, name)
    except (AuditError, ImportError, AttributeError) as error:
        return f"cannot be loaded: {error}"
