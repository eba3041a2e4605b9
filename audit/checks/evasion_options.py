"""Turns the options of a spec into an attack, or says which of them the attack does not have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...attacks.attack import Attack
from ...attacks.threat import NORMS, Norm
from .. import registry
from ..errors import AuditError


def attack_class(name: str) -> type[Any]:
    """The attack registered under ``name``.

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    try:
        return registry.load("attacks", name)
    except AuditError as error:
        raise ValueError(str(error)) from error


def build_attack(
    name: str, options: Mapping[str, Any], norm: Norm, known: tuple[str, ...], *, targeted: bool
) -> Attack:
    """The attack ``name`` with ``options``.

    Args:
        known: names that mean something to the check, offered where an option is misspelt.

    Raises:
        ValueError: for an unknown attack or option, a value of the wrong type, or a norm or goal it cannot have.
    """
    cls = attack_class(name)
    _check_names(name, options, [field.name for field in fields(cls)], known)
    norms = getattr(cls, "norms", NORMS)
    if norm not in norms:
        raise ValueError(f"attack {name!r} knows the norms {', '.join(norms)}, not {norm}")
    if targeted and getattr(cls, "targets", "optional") == "never":
        raise ValueError(f"attack {name!r} cannot be targeted")
    try:
        return TypeAdapter(cls).validate_python(dict(options))
    except ValidationError as error:
        raise ValueError("; ".join(_problem(name, detail) for detail in error.errors())) from error


def _check_names(attack: str, options: Mapping[str, Any], own: list[str], known: tuple[str, ...]) -> None:
    for option in options:
        if option not in own:
            near = difflib.get_close_matches(option, [*own, *known], n=1, cutoff=0.6)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(own) or 'no options'}."
            raise ValueError(f"attack {attack!r} has no option {option!r}. {hint}")


def _problem(attack: str, detail: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"option {where!r} of attack {attack!r}: {message}" if where else message
