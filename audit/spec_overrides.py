"""Applies ``--set key=value`` to a spec before it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from .errors import SpecError
from .spec_entries import entry_parts
from .spec_problems import suggestion
from .yaml_lines import parse_yaml

_LISTS = ("checks", "variants")


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``raw`` with each ``path=value`` set; values are read as YAML.

    A path is dotted: ``seed``, ``data.limit``, ``checks.0.eps``, or starts with the id of a check or variant:
    ``linf.eps=4/255``.

    Raises:
        SpecError: for a text without ``=``, or a path that leads nowhere.
    """
    result = deepcopy(dict(raw))
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise SpecError(f"--set {text!r}: write key=value, such as linf.eps=4/255 or data.limit=100")
        _set(result, keys, parse_yaml(value, f"--set {path}").value if value.strip() else None, text)
    return result


def _set(raw: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    entry = _entry_of_id(raw, keys[0]) if len(keys) > 1 and keys[0] not in raw else None
    holder: Any = raw
    if entry is not None:
        holder, keys = _options(*entry), keys[1:]
    elif keys[0] in _LISTS and len(keys) > 2:
        entries: Any = raw.get(keys[0])
        i = _position(entries, keys[1], text)
        holder, keys = _options(entries, i), _without_name(entries[i], keys)
    elif len(keys) > 1 and keys[0] not in (*raw, "model", "data"):
        raise SpecError(f"--set {text!r}: no such place. {suggestion(keys[0], [*raw, *_ids(raw)])}")
    for key in keys[:-1]:
        holder = holder[_position(holder, key, text)] if isinstance(holder, list) else holder.setdefault(key, {})
        if not isinstance(holder, dict | list):
            raise SpecError(f"--set {text!r}: {key} is a plain value and has no parts")
    last: Any = _position(holder, keys[-1], text) if isinstance(holder, list) else keys[-1]
    holder[last] = value


def _options(entries: Any, i: int) -> dict[str, Any]:
    """The options of an entry, which is rewritten as ``{name: options}`` so that they can be changed."""
    name, options = entry_parts(entries[i]) or ("", {})
    if not isinstance(options, dict) or not name:
        raise SpecError(f"--set: entry {i} is not a name with options")
    options = dict(options)
    entries[i] = {name: options}
    return options


def _without_name(entry: Any, keys: list[str]) -> list[str]:
    """The keys below an entry: ``checks.0.evasion.eps`` and ``checks.0.eps`` mean the same."""
    name, _ = entry_parts(entry) or ("", {})
    rest = keys[2:]
    return rest[1:] if len(rest) > 1 and rest[0] == name else rest


def _position(entries: Any, key: str, text: str) -> int:
    if not isinstance(entries, list) or not key.isascii() or not key.isdigit() or int(key) >= len(entries):
        size = len(entries) if isinstance(entries, list) else 0
        raise SpecError(f"--set {text!r}: no entry {key!r}; the list has {size}, counted from 0")
    return int(key)


def _entry_of_id(raw: Mapping[str, Any], wanted: str) -> tuple[list[Any], int] | None:
    for field in _LISTS:
        entries = raw.get(field)
        for i, entry in enumerate(entries if isinstance(entries, list) else ()):
            if wanted == _id(entry):
                assert isinstance(entries, list)
                return entries, i
    return None


def _ids(raw: Mapping[str, Any]) -> list[str]:
    return [_id(entry) for field in _LISTS if isinstance(raw.get(field), list) for entry in raw[field]]


def _id(entry: Any) -> str:
    name, options = entry_parts(entry) or ("", {})
    return str((options.get("id") if isinstance(options, Mapping) else None) or name)
