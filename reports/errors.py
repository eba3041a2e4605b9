"""What can go wrong when records are read and reports are written."""

from __future__ import annotations

from ..attacks.errors import AuditError


class RecordError(AuditError):
    """The record cannot be read: missing, not JSON, malformed, or written by a newer version."""


class ReportError(AuditError):
    """The reports cannot be written: an unknown format, or a folder that does not take files."""
