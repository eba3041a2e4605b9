"""Reads YAML 1.2 scalars, lists and mappings, and remembers on which line each value stands.

No tag constructs anything: text, numbers, true/false, null, lists and mappings are all there is.
Unlike YAML 1.1, ``no`` and ``on`` are text, ``1e-5`` is a number, and ``1:30`` and ``2024-01-01`` are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import SpecError

Location = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the root."""

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000
MAX_DEPTH = 40

_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalar rules of YAML 1.2 (core schema)."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own protocol)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in (
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?[0-9]+$|0x[0-9a-fA-F]+$|0o[0-7]+$", list("-+0123456789")),
    ("float", _FLOAT + r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$", list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(_pattern), _first)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document.

    Attributes:
        value: its plain content.
        lines: line (from 1) of each location; of mappings' entries, the line of the key.
        name: what messages call it, usually the file's name.
    """

    value: Any
    lines: Mapping[Location, int]
    name: str

    def line(self, location: Location) -> int | None:
        """The line of a location, or of the nearest enclosing one."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return self.lines[location[:end]]
        return None


def read_yaml(path: Path) -> Document:
    """Reads a file.

    Raises:
        SpecError: when it is missing, not a file, too large, not UTF-8, or not YAML.
    """
    try:
        if path.is_dir():
            raise SpecError(f"{path}: this is a folder; give the path of a spec file such as audit.yaml")
        if path.exists() and not path.is_file():
            raise SpecError(f"{path}: this is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file. `auditorch init` writes a first spec") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read ({error})") from error
    if len(content) > MAX_BYTES:
        raise SpecError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB; this is not an audit spec")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SpecError(f"{path.name}:{line}: not UTF-8 text; save the file as UTF-8") from error
    return parse_yaml(text, path.name)


def parse_yaml(text: str, name: str = "spec") -> Document:
    """Parses one YAML document.

    Raises:
        SpecError: for text that is not YAML, has a tag or a duplicate key, nests too deep or unfolds too far.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise SpecError(_syntax_message(error, name)) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise SpecError(f"{name}:{line}: character #x{code:04x} is not allowed in YAML") from error
    except (RecursionError, ValueError, IndexError) as error:
        raise SpecError(f"{name}: not readable as YAML: nested too deep or malformed") from error
    if node is None:
        raise SpecError(f"{name}: empty. `auditorch init` writes a first spec")
    reader = _Reader(name)
    value = reader.read(node, ())
    return Document(value, reader.lines, name)


def _syntax_message(error: yaml.MarkedYAMLError, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}" if mark else name
    problem = error.problem or error.context or "not readable as YAML"
    if "'\\t'" in problem:
        problem = "a tab indents this line; YAML wants spaces"
    elif "single document" in (error.context or ""):
        problem = "a second document starts here (---); a spec is one document"
    elif "mapping values are not allowed" in problem:
        problem = "a colon stands where none may; put text that contains ': ' in quotes"
    return f"{where}: {problem}"


class _Reader:
    """Turns nodes into plain values, within limits."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Location, int] = {}
        self.count = 0

    def read(self, node: yaml.Node, location: Location) -> Any:
        self.lines.setdefault(location, node.start_mark.line + 1)
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.problem(node, f"more than {MAX_VALUES:,} values (aliases count each time they are used)")
        if len(location) > MAX_DEPTH:
            raise self.problem(node, f"nested deeper than {MAX_DEPTH} levels, or an alias that contains itself")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, location)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.read(child, (*location, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self.scalar(node)
        raise self.problem(
            node, f"tag {node.tag.replace(_TAG, '!!')!r} is not allowed: a spec never constructs objects"
        )

    def mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in self.entries(node):
            key = self.key(key_node)
            if key in result:
                first = self.lines[(*location, key)]
                raise self.problem(key_node, f"key {key!r} is given twice (first on line {first})")
            self.lines[(*location, key)] = key_node.start_mark.line + 1
            result[key] = self.read(value_node, (*location, key))
        return result

    def entries(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value == "<<" and key_node.style is None:
                raise self.problem(key_node, "merge keys (<<) are not supported; write the entries out")
            yield key_node, value_node

    def key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            raise self.problem(node, "a key must be plain text")
        return node.value

    def scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return _SCALARS[node.tag](node.value)
        except ValueError as error:
            raise self.problem(node, f"{node.value[:40]!r} cannot be read as {node.tag.removeprefix(_TAG)}") from error

    def problem(self, node: yaml.Node, message: str) -> SpecError:
        return SpecError(f"{self.name}:{node.start_mark.line + 1}: {message}")


def _integer(text: str) -> int:
    prefix = text[:2]
    return int(text, {"0x": 16, "0o": 8}.get(prefix, 10))


def _float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))


_SCALARS: dict[str, Callable[[str], Any]] = {
    _TAG + "str": str,
    _TAG + "null": lambda _: None,
    _TAG + "bool": lambda text: text.lower() == "true",
    _TAG + "int": _integer,
    _TAG + "float": _float,
}
