"""The published JSON Schema of the record, and reading and writing ``audit.json``."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import RecordError, ReportError
from .migrate import migrate
from .record import SCHEMA_VERSION, AuditRecord

_SCHEMA_ID = "urn:auditorch:record:{version}"


def record_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of ``audit.json``. Numbers may be the strings NaN, Infinity and -Infinity."""
    body = AuditRecord.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _SCHEMA_ID.format(version=SCHEMA_VERSION),
        **_with_infinities(body),
    }


def read_record(path: Path | str) -> AuditRecord:
    """Reads ``audit.json``, given its path or that of its folder; records of older versions are migrated.

    Raises:
        RecordError: when it is missing, not JSON, malformed, or of a newer schema version.
    """
    path = Path(path)
    path = path / "audit.json" if path.is_dir() else path
    data = _read(path)
    document = _parse(data, path)
    _refuse_newer(document, path)
    try:
        return AuditRecord.model_validate_json(data if _is_present(document) else json.dumps(migrate(document)))
    except (ValidationError, RecursionError) as error:
        told = _problems(error) if isinstance(error, ValidationError) else "it is nested too deeply"
        raise RecordError(f"{path} is not an audit record: {told}") from None


def write_record(record: AuditRecord, path: Path | str) -> Path:
    """Writes the record as JSON, whole or not at all.

    Raises:
        ReportError: when the file cannot be written.
    """
    return write_text(Path(path), record.model_dump_json(indent=2) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 through a temporary file beside ``path``, so that a reader never sees half a file.

    Raises:
        ReportError: when the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode("utf-8"))
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ReportError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(data, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RecordError(f"{path} is not an audit record: expected an object, found {type(document).__name__}")
    return document


def _whole(digits: str) -> int:
    """A whole number that also a float can hold: reports draw and round what they show."""
    number = int(digits)
    if math.isinf(float(digits)):
        raise ValueError(f"it has a whole number of {len(digits)} digits; at most 308 can be read")
    return number


def _refuse_newer(document: dict[str, Any], path: Path) -> None:
    version = document.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise RecordError(f"{path} is not an audit record: schema_version is {version!r}, expected {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {version}; this auditorch reads up to {SCHEMA_VERSION}. "
            "Install a newer one: pip install --upgrade auditorch"
        )


def _is_present(document: dict[str, Any]) -> bool:
    return document["schema_version"] == SCHEMA_VERSION


def _problems(error: ValidationError, shown: int = 3) -> str:
    problems = error.errors(include_url=False, include_input=False)
    told = [f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in problems[:shown]]
    more = f" (and {len(problems) - shown} more)" if len(problems) > shown else ""
    return "; ".join(told) + more


def _with_infinities(node: Any) -> Any:
    """Lets every number also be one of the strings that stand for what JSON has no number for."""
    if isinstance(node, list):
        return [_with_infinities(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_infinities(part) for key, part in node.items()}
    if node.get("type") != "number":
        return node
    kept = {key: node.pop(key) for key in ("default", "description", "title") if key in node}
    return {"anyOf": [node, {"enum": ["NaN", "Infinity", "-Infinity"]}], **kept}
