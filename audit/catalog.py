"""Describes what is registered, for ``list`` and ``show``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from . import registry
from .errors import AuditError, SpecError
from .registry import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)


def listing(kind: Kind) -> list[tuple[str, str]]:
    """Name and one sentence for everything registered as ``kind``."""
    return [(name, summary(kind, name)) for name in registry.names(kind)]


def text_attacks() -> list[tuple[str, str]]:
    """Name and one sentence for each attack of the check `text_evasion`; they edit strings, not tensors."""
    from ..attacks.text.recipes import RECIPES

    return [(name, (inspect.getdoc(build) or "").partition("\n")[0]) for name, build in RECIPES.items()]


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
    texts = dict(text_attacks())
    if not kinds and name in texts:
        return f"text attack {name}\n\n{texts[name]}\n\nRun it with the check text_evasion: {{attack: {name}}}."
    if not kinds:
        raise SpecError(
            registry.unknown("check, attack or defense", name, [*texts, *(n for k in KINDS for n in registry.names(k))])
        )
    return "\n\n".join("\n".join(_describe(kind, name)) for kind in kinds)


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a description; the docstring has no title, the first part is title and question."""

    title: str
    lines: list[str]


def sections(kind: Kind, name: str) -> list[Section]:
    """Everything there is to say of one registered thing, in parts.

    Raises:
        SpecError: for an unknown name.
    """
    cls = registry.load(kind, name)
    head = [getattr(cls, "title", "") or name, *filter(None, [getattr(cls, "question", "")])]
    return [
        Section("Title", head),
        Section("", (inspect.getdoc(cls) or "").splitlines()),
        Section("Options", [*_fields(cls)]),
        Section("Metrics", [f"{key}: {text}" for key, text in getattr(cls, "metrics", {}).items()]),
        Section("Needs", sorted(getattr(cls, "requires", ())) if kind == "checks" else []),
        Section("Examines", sorted(getattr(cls, "modalities", ()))),
        Section("Norms", list(getattr(cls, "norms", ())) if kind == "attacks" else []),
        Section("Cost", [cls.cost] if getattr(cls, "cost", "") else []),
        Section("References", list(getattr(cls, "references", ()))),
        Section("Standards", list(getattr(cls, "standards", ()))),
    ]


def _describe(kind: Kind, name: str) -> Iterator[str]:
    head, documentation, *others = sections(kind, name)
    title, *question = head.lines
    yield f"{kind.removesuffix('s')} {name}" + (f": {title}" if title != name else "")
    yield from (*question, "", *documentation.lines)
    for section in others:
        if section.lines:
            yield from ("", f"{section.title}:", *(f"  {line}" for line in section.lines))


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
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(list(value)) if isinstance(value, tuple) else str(value) if value != "" else "empty"


def _type(annotation: Any) -> str:
    """A type as a person writes it: choices by their values, without what validates them."""
    if isinstance(annotation, str):
        return annotation.replace("None", "none")
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0])
    if origin is Literal:
        return " | ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in inside)
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(_type(part) for part in inside))
    if origin in (Mapping, dict):
        return f"mapping of {_type(inside[0])} to {_type(inside[1])}"
    if origin is not None:
        parts = [_type(part) for part in inside if part is not Ellipsis]
        return f"list of {parts[0]}" if len(inside) == 2 and inside[1] is Ellipsis else f"[{', '.join(parts)}]"
    return "none" if annotation in (None, type(None)) else getattr(annotation, "__name__", str(annotation))


def summary(kind: Kind, name: str) -> str:
    """One sentence, or why it cannot be loaded."""
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
