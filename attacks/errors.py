"""The errors every part of auditorch raises: what was wrong, where, and what to do."""


class AuditError(Exception):
    """Base of all errors that a user can cause and mend. The message says what, where and what to do."""

    exit_code = 2


class UnsupportedError(AuditError, ValueError):
    """The combination asked for has no meaning or is not implemented (for example DLR loss on two classes)."""


class MissingExtraError(AuditError, ImportError):
    """An optional dependency is not installed; the message ends in the exact ``pip install`` command."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'auditorch[{extra}]'")
