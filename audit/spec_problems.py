"""Says what is wrong in a spec, where, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import AuditError, SpecError
from .yaml_lines import Document, Location

MAX_SHOWN = 20
MAX_LENGTH = 600

_SHOULD = re.compile(r"^(Input|String|List|Tuple|Dictionary|Set|Value|URL) should")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong at one place."""

    location: Location
    message: str


def raise_problems(problems: Sequence[Problem], document: Document) -> None:
    """Raises one SpecError for all problems, in the order of their lines; nothing when there are none."""
    if not problems:
        return
    ordered = sorted(problems, key=lambda problem: document.line(problem.location) or 0)
    lines = [_sentence(problem, document) for problem in ordered[:MAX_SHOWN]]
    if len(ordered) > MAX_SHOWN:
        lines.append(f"{document.name}: and {len(ordered) - MAX_SHOWN} more")
    raise SpecError("\n".join(lines))


def validated(model: type[M], value: Any, at: Location, problems: list[Problem]) -> M | None:
    """``value`` as a ``model``, or None with the reasons added to ``problems``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems.extend(_problems(error, model, value, at))
    except AuditError as error:
        problems.append(Problem(at, str(error)))
    except Exception as error:
        problems.append(Problem(at, f"not accepted ({type(error).__name__}: {error})"))
    return None


def dotted(location: Location) -> str:
    """``checks[1].evasion.eps``"""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def suggestion(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'eps'?``, or the list of what is known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(known)}." if known else ""


def _sentence(problem: Problem, document: Document) -> str:
    line = document.line(problem.location)
    where = [f"{document.name}:{line}" if line and document.lines else document.name, dotted(problem.location)]
    text = ": ".join([*filter(None, where), problem.message])
    return text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "…"


def _problems(error: ValidationError, model: type[BaseModel], value: Any, at: Location) -> list[Problem]:
    """One problem per place: the branches of a union are told in one sentence."""
    found: dict[Location, list[str]] = {}
    for detail in error.errors(include_url=False):
        inner = _place(detail, value)
        found.setdefault((*at, *inner), []).append(_message(detail, inner, model))
    return [Problem(location, _joined(messages)) for location, messages in found.items()]


def _place(detail: ErrorDetails, value: Any) -> Location:
    """The part of pydantic's location that stands in the file (union branches and validators do not)."""
    inner: list[str | int] = []
    for part in detail["loc"]:
        if _has(value, part):
            value = value[part]
            inner.append(part)
    if detail["type"] == "missing":
        inner.append(detail["loc"][-1])
    return tuple(inner)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def _message(detail: ErrorDetails, inner: Location, model: type[BaseModel]) -> str:
    got = _shown(detail["input"])
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return "required, but not given"
        case "extra_forbidden":
            return f"unknown field. {suggestion(str(inner[-1]), _fields_at(model, inner[:-1]))}"
        case "literal_error" | "enum":
            expected = str(context.get("expected", "")).replace(" or ", ", ")
            known = [choice.strip().strip("'") for choice in expected.split(",")]
            return f"got {got}. {suggestion(str(detail['input']), known)}"
        case "value_error":
            return str(context.get("error", detail["msg"]))
        case kind:
            return f"{_EXPECTED.get(kind) or _SHOULD.sub('must', detail['msg'])}, got {got}"


_EXPECTED = {
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping (key: value)",
    "model_type": "expected a mapping (key: value)",
    "model_attributes_type": "expected a mapping (key: value)",
    "none_required": "expected nothing",
}


def _joined(messages: list[str]) -> str:
    """``expected a number, got 'x'`` and ``expected text, got 'x'`` become one sentence."""
    unique = list(dict.fromkeys(messages))
    ends = {message.rpartition(", got ")[2] for message in unique}
    if len(unique) > 1 and len(ends) == 1 and all(message.startswith("expected ") for message in unique):
        kinds = [message.rpartition(", got ")[0].removeprefix("expected ") for message in unique]
        return f"expected {' or '.join(kinds)}, got {ends.pop()}"
    return "; or ".join(unique)


def _fields_at(model: type[BaseModel], inner: Location) -> list[str]:
    """Names of the fields of the (sub-)model at a location; empty where that is not a plain model."""
    for part in inner:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _shown(value: Any) -> str:
    kind = {dict: "a mapping", list: "a list", type(None): "nothing"}.get(type(value))
    text = repr(value)
    return kind or (text if len(text) <= 60 else text[:57] + "…'")
