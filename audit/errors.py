"""The errors a user can meet, all under :class:`AuditError`."""

from __future__ import annotations

from ..attacks.errors import AuditError, MissingExtraError, UnsupportedError

__all__ = [
    "AuditError",
    "DataError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "SpecError",
    "UnsafeModelError",
    "UnsupportedError",
]


class SpecError(AuditError):
    """The spec cannot be read; the message names file, line, and the nearest valid name."""


class DataError(AuditError):
    """The data cannot be audited: missing, empty, wrong shape or range, NaN, labels out of range."""


class ModelError(AuditError):
    """The model cannot be used: weights do not fit, output is not logits ``(n, k)``, NaN."""


class OutputError(AuditError):
    """The output folder cannot be written or read."""


class UnsafeModelError(AuditError):
    """A model file was refused because loading it could run code; nothing of it was executed."""

    exit_code = 3
