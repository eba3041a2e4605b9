"""Writes ``docs/reference``: every check, attack, defense, metric and command, and the record's schema, from the code.

Run it with ``make docs``; a test fails when the pages are behind.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..reports.schema import record_schema
from . import catalog, registry
from .registry import Kind

_HEAD = "<!-- Written by `make docs` from the code: edit the docstrings and options there. -->\n"
_TITLES: dict[Kind, str] = {"checks": "Checks", "attacks": "Attacks", "defenses": "Defenses"}
_INTRODUCTION: dict[Kind, str] = {
    "checks": "What a spec can ask for under `checks`, with options in braces: `- evasion: {id: linf, eps: 8/255}`.",
    "attacks": "What `evasion` can run as `attack`, and what can be called on tensors.",
    "defenses": "What a spec can ask for under `variants`: every check then runs on the treated model as well.",
}


def pages() -> dict[str, str]:
    """File name and content of each page, built-ins only, so that they do not depend on what else is installed."""
    written = {f"{kind}.md": _page(kind) for kind in catalog.KINDS}
    schema = json.dumps(record_schema(), indent=1) + "\n"
    return {**written, "metrics.md": _metrics(), "commands.md": _commands(), "record.schema.json": schema}


def write(folder: Path) -> list[Path]:
    """Writes the pages and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in pages()]


def _page(kind: Kind) -> str:
    parts = [f"# {_TITLES[kind]}", _INTRODUCTION[kind], _contents(kind)]
    parts += ["\n".join(_entry(kind, name)) for name in registry.BUILTIN[kind]]
    parts += [_text_attacks()] if kind == "attacks" else []
    return _HEAD + "\n\n".join(parts) + "\n"


def _text_attacks() -> str:
    about = "What `text_evasion` can run as `attack`. They edit strings."
    return "\n".join(
        ["## Text attacks", "", about, "", *(f"- `{name}`: {_text(text)}" for name, text in catalog.text_attacks())]
    )


def _contents(kind: Kind) -> str:
    return "\n".join(
        f"- [`{name}`](#{name}): {_text(_lead(catalog.sections(kind, name)[1].lines))}"
        for name in registry.BUILTIN[kind]
    )


def _entry(kind: Kind, name: str) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    title, *sections = catalog.sections(kind, name)
    if title.lines != [name]:
        yield f"**{_text(title.lines[0])}** " + _text(" ".join(title.lines[1:]))
        yield ""
    for section in sections:
        if not section.lines:
            continue
        if section.title:
            yield f"{section.title}:"
            yield ""
            yield from (f"- {_option(line)}" for line in section.lines)
        else:
            yield _docstring("\n".join(_listed(section.lines)))
        yield ""


def _metrics() -> str:
    rows = [(name, text) for name, text in catalog.metrics() if name.partition(".")[0] in registry.BUILTIN["checks"]]
    lines = [f"| `{name}` | {_text(text)} |" for name, text in rows]
    about = (
        "Addressed in gates as `<check id>.<metric>`; the id is the check's name unless the spec gives another. Words "
        "in capitals stand for a value, such as the radius in `robust_accuracy_at_EPS`."
    )
    return _HEAD + "\n".join(["# Metrics", "", about, "", "| metric | what it is |", "|---|---|", *lines]) + "\n"


def _commands() -> str:
    from .cli import main

    context = click.Context(main, info_name="auditorch")
    parts = ["# Commands", inspect.cleandoc(main.help or "")]
    for name in sorted(main.commands):
        command = main.commands[name]
        usage = " ".join([f"auditorch {name}", *command.collect_usage_pieces(click.Context(command, parent=context))])
        body = inspect.cleandoc(command.help or "")
        options = [found for param in command.params if (found := param.get_help_record(context)) and found[1]]
        lines = [f"- `{flags}`: {_text(text)}" for flags, text in options]
        parts.append("\n\n".join([f"## {name}", f"`{usage}`", body, *(["\n".join(lines)] if lines else [])]))
    return _HEAD + "\n\n".join(part.strip() for part in parts) + "\n"


def _docstring(text: str) -> str:
    """Plain text for Markdown: reST's double backticks become single ones, lists of arguments code."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`").rstrip()


def _option(line: str) -> str:
    name, paren, rest = line.partition(" (")
    return f"`{name}` ({_text(rest)}" if paren and re.fullmatch(r"\w+", name) else _text(line)


def _text(value: Any) -> str:
    """One line that Markdown shows as it is: outside of code, nothing opens a tag or a column."""
    text = _docstring(" ".join(str(value).split()))
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
        for part in parts
    )


def _listed(lines: list[str]) -> Iterator[str]:
    """Indented arguments of a docstring as a list, which Markdown would otherwise set as code."""
    for line in lines:
        argument = re.fullmatch(r"    (\w[\w, *]*): (.*)", line)
        if line in ("Args:", "Attributes:", "Raises:"):
            yield from (line, "")
        elif argument:
            yield f"- `{argument[1]}`: {argument[2]}"
        else:
            yield f"  {line.strip()}" if line.startswith("    ") else line


def _lead(lines: list[str]) -> str:
    """The first sentence that says something; a reference in front of it is left to the entry."""
    paragraph = " ".join("\n".join(lines).partition("\n\n")[0].split())
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)
    return next((one for one in sentences if not one.startswith(("http", "arXiv"))), sentences[0])


def main() -> None:
    """Writes the pages into the folder given, ``docs/reference`` otherwise."""
    for path in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference")):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
