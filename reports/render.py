"""From a record to its reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .cyclonedx import render_cyclonedx
from .errors import ReportError
from .html import render_html
from .junit import render_junit
from .markdown import render_markdown
from .model_card import render_model_card
from .record import AuditRecord
from .sarif import render_sarif
from .schema import write_record, write_text

ALL = ("html", "junit", "sarif", "markdown", "cyclonedx", "modelcard")
"""The formats made from ``audit.json``; ``json``, the record itself, can be asked for as well."""

FILES = {
    "html": "report.html",
    "json": "audit.json",
    "junit": "junit.xml",
    "sarif": "report.sarif",
    "markdown": "summary.md",
    "cyclonedx": "bom.cdx.json",
    "modelcard": "model-card.md",
}


def render(record: AuditRecord, directory: Path, formats: Sequence[str] = ALL) -> list[Path]:
    """Writes the reports into ``directory``, which also holds the evidence; returns the files written, in order.

    Raises:
        ReportError: for an unknown format, before anything is written, or when a file cannot be written.
    """
    unknown = [name for name in formats if name not in FILES]
    if unknown:
        raise ReportError(f"unknown report format {unknown[0]!r}. Known: {', '.join(FILES)}.")
    return [_render_one(record, directory, name) for name in dict.fromkeys(formats)]


def _render_one(record: AuditRecord, directory: Path, name: str) -> Path:
    path = directory / FILES[name]
    if name == "json":
        return write_record(record, path)
    if name == "html":
        return write_text(path, render_html(record, directory))
    return write_text(path, _TEXT[name](record))


_TEXT: dict[str, Callable[[AuditRecord], str]] = {
    "junit": render_junit,
    "sarif": render_sarif,
    "markdown": render_markdown,
    "cyclonedx": render_cyclonedx,
    "modelcard": render_model_card,
}
