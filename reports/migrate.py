"""Brings records of older versions to the present one, a step at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .record import SCHEMA_VERSION

Document = dict[str, Any]

_GATE = re.compile(
    r"\s*(?:(?P<variant>[^\s:<>=!]+)\s*:\s*)?(?P<check>[^\s.<>=!]+)\.(?P<metric>[^\s<>=!]+)\s*(?P<operator>[<>=]=?)"
)


def migrate(document: Document) -> Document:
    """``document`` in the present version. What is malformed stays so: validation tells."""
    while (step := _STEPS.get(document.get("schema_version", SCHEMA_VERSION))) is not None:
        document = step(document)
    return document


def _from_1(document: Document) -> Document:
    """Version 2 keeps with each gate its operator, its unit and the result that it speaks of."""
    gates = document.get("gates", [])
    if isinstance(gates, list):
        gates = [_gate(document, gate) if isinstance(gate, dict) else gate for gate in gates]
    return {**document, "schema_version": 2, "gates": gates}


def _gate(document: Document, gate: Document) -> Document:
    found = _GATE.match(str(gate.get("expression", "")))
    if found is None:
        return gate
    variant = found["variant"] or gate.get("variant", "base")
    results = _named(document.get("variants"), variant).get("results")
    metric = _named(_named(results, found["check"]).get("metrics"), found["metric"], "name")
    return {**gate, "operator": found["operator"], "check": found["check"], "unit": metric.get("unit", "")}


def _named(parts: Any, name: str, key: str = "id") -> Document:
    """The part of that name; empty when there is none."""
    listed = parts if isinstance(parts, list) else []
    return next((part for part in listed if isinstance(part, dict) and part.get(key) == name), {})


_STEPS: dict[Any, Callable[[Document], Document]] = {1: _from_1}
