"""The files of the output folder that a reader opens, and the digest that guards the record."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..reports.record import AuditRecord
from ..reports.render import render
from .spec import Spec
from .storage import write_atomic

RECORD = "audit.json"
DIGEST = "audit.json.sha256"
ORIGIN = "results/origin.json"


def write_outputs(record: AuditRecord, directory: Path, spec: Spec) -> None:
    """Writes ``audit.json``, its digest, and every report.

    The digest (in the format of ``sha256sum``) shows that the record was changed by accident or carelessness. It is no
    signature: whoever forges the record can renew it.

    Raises:
        OutputError: when a file cannot be written.
    """
    data = (record.model_dump_json(indent=2) + "\n").encode()
    write_atomic(directory / RECORD, data)
    write_atomic(directory / DIGEST, f"{hashlib.sha256(data).hexdigest()}  {RECORD}\n".encode())
    _write_origin(directory, spec)
    render(record, directory)


def read_origin(directory: Path) -> Path | None:
    """The folder that the spec's relative paths start from, as the run noted it; None when it is not known."""
    try:
        noted = json.loads((directory / ORIGIN).read_bytes())["base"]
        return (directory / noted).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_origin(directory: Path, spec: Spec) -> None:
    """Beside the record, not in it: a path can name a person or a machine."""
    try:
        base = os.path.relpath(spec.base_dir.resolve(), directory.resolve())
    except ValueError:  # another drive
        base = str(spec.base_dir.resolve())
    write_atomic(directory / ORIGIN, (json.dumps({"base": Path(base).as_posix()}) + "\n").encode())
