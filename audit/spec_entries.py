"""Reads the entries of ``checks`` and ``variants`` with the classes that the registry names, and checks references."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import registry
from .errors import AuditError
from .gate_language import EVERY, OWN, parse_gate
from .spec_problems import Problem, suggestion, validated
from .yaml_lines import Location

if TYPE_CHECKING:
    from .checks.base import Check
    from .spec import GateSpec

BASE = "base"
"""The id of the untreated model."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def entry_parts(entry: Any) -> tuple[str, Any] | None:
    """Name and options of ``evasion`` or ``evasion: {…}``; None for any other shape."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        return str(name), {} if options is None else options
    return None


def read_entries(raw: Mapping[str, Any], field: str, kind: registry.Kind, problems: list[Problem]) -> tuple[Any, ...]:
    """The configured checks or variants; ids filled in, unique and fit for file names."""
    parsed = []
    taken: dict[str, Location] = {}
    for location, entry in _listed(raw, field):
        read = _read_entry(entry, location, kind, problems)
        if read is None:
            continue
        for one in read.expanded() if kind == "defenses" else (read,):
            key = one.id.casefold()  # ids become file names, and some file systems ignore case
            if kind == "defenses" and key == BASE:
                problems.append(Problem(location, f"the id {BASE!r} means the untreated model; choose another"))
            elif key in taken:
                other = f"{taken[key][0]}[{taken[key][1]}]"
                problems.append(Problem(location, f"the id {one.id!r} is also that of {other}; give each its own `id`"))
            taken[key] = location
            parsed.append(one)
    return tuple(parsed)


def check_references(
    raw: Mapping[str, Any], parsed: tuple[Check, ...], gates: Mapping[Location, GateSpec], problems: list[Problem]
) -> None:
    """Adds a problem for each gate or ``variants:`` list that names what the spec does not have."""
    checks, variants = _ids(raw, "checks"), [BASE, *_ids(raw, "variants")]
    known_metrics = {check.id: tuple(check.metrics) for check in parsed}
    for location, entry in _listed(raw, "checks"):
        parts = entry_parts(entry)
        wanted = parts[1].get("variants") if parts and isinstance(parts[1], Mapping) else None
        for variant in wanted if isinstance(wanted, list | tuple) else ():
            if str(variant) not in variants:
                where = (*location, *_inside(entry), "variants")
                problems.append(Problem(where, f"no variant {str(variant)!r}. {suggestion(str(variant), variants)}"))
    for location, gate in gates.items():
        message = _gate_problem(gate.expression, checks, variants, known_metrics)
        if message:
            problems.append(Problem(location, message))


def _gate_problem(
    expression: str, checks: list[str], variants: list[str], metrics: Mapping[str, tuple[str, ...]]
) -> str:
    try:
        gate = parse_gate(expression)
    except AuditError as error:
        return str(error)
    for address in gate.addresses:
        if address.check not in checks and address.check != OWN:
            return f"gate {expression!r}: no check {address.check!r}. {suggestion(address.check, checks)}"
        if address.variant not in (None, EVERY, *variants):
            return f"gate {expression!r}: no variant {address.variant!r}. {suggestion(str(address.variant), variants)}"
        near = _misspelt(address.metric, metrics.get(address.check, ())) if address.label is None else ""
        if near:
            return f"gate {expression!r}: no metric {address.metric!r}. Did you mean {near!r}?"
    return ""


def _misspelt(metric: str, known: tuple[str, ...]) -> str:
    """The declared metric that this one is nearly spelt like; empty when it is fine or unlike all of them.

    Upper-case words of a declared name stand for a value (``robust_accuracy_at_EPS``), and so do numbers.
    """
    patterns = [re.sub(r"[A-Z]+|[0-9][0-9.e]*", "#", name) for name in known]
    plain = re.sub(r"(?<=_)[0-9][0-9.e+-]*", "#", metric)
    if plain in patterns:
        return ""
    near = difflib.get_close_matches(plain, patterns, n=1, cutoff=0.8)
    return known[patterns.index(near[0])] if near else ""


def _read_entry(entry: Any, location: Location, kind: registry.Kind, problems: list[Problem]) -> Any | None:
    parts = entry_parts(entry)
    if parts is None:
        problems.append(Problem(location, "expected a name, or one name with its options: `- evasion: {eps: 8/255}`"))
        return None
    name, options = parts
    try:
        cls = registry.load(kind, name)
    except AuditError as error:
        problems.append(Problem((*location, *_inside(entry)), str(error)))
        return None
    except Exception as error:  # a third party's module may fail in any way when it is imported
        problems.append(Problem((*location, *_inside(entry)), f"cannot be loaded ({type(error).__name__}: {error})"))
        return None
    one = validated(cls, options, (*location, *_inside(entry)), problems)
    if one is None:
        return None
    if not one.id:
        return one.model_copy(update={"id": name})
    if not _ID.fullmatch(one.id):
        rule = "letters, digits, - and _, at most 64, starting with a letter or digit"
        problems.append(Problem((*location, *_inside(entry), "id"), f"{one.id!r} cannot be an id: use {rule}"))
        return None
    return one


def _listed(raw: Mapping[str, Any], field: str) -> Iterator[tuple[Location, Any]]:
    entries = raw.get(field)
    if isinstance(entries, list | tuple):
        yield from (((field, i), entry) for i, entry in enumerate(entries))


def _inside(entry: Any) -> tuple[str, ...]:
    """The step from an entry to its options: the name, when the entry is a mapping."""
    return (next(iter(entry)),) if isinstance(entry, Mapping) and len(entry) == 1 else ()


def _ids(raw: Mapping[str, Any], field: str) -> list[str]:
    """Ids as written, also of entries that are otherwise wrong, so that one mistake is reported once."""
    found = []
    for _, entry in _listed(raw, field):
        name, options = entry_parts(entry) or ("", {})
        options = options if isinstance(options, Mapping) else {}
        plain, several = str(options.get("id") or name), options.get("epsilon")
        # A list of budgets makes one variant of each; see Variant.expanded.
        budgets = several if field == "variants" and isinstance(several, list | tuple) else ()
        found += [f"{plain}-eps{one:g}" for one in budgets if isinstance(one, int | float)] or [plain]
    return [one for one in found if one]
