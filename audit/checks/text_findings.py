"""What a reader must know about an attack on texts."""

from __future__ import annotations

from collections.abc import Iterator

from ...reports.record import Finding, Severity
from .metrics import percent
from .text_measures import TextMeasured

_LOSSES: tuple[tuple[float, Severity], ...] = ((0.9, "critical"), (0.5, "high"), (0.2, "medium"), (0.05, "low"))


def findings(measured: TextMeasured, attack: str, standards: tuple[str, ...]) -> Iterator[Finding]:
    """How much falls, and how cheaply."""
    tried, fallen = int(measured.tried.sum()), int(measured.fallen.sum())
    if not tried:
        return
    share = fallen / tried
    cheap = int((measured.fallen & (measured.changed == 1)).sum())
    yield Finding(
        severity=severity(share),
        title=f"{percent(share)} of correct predictions are overturned by {attack} edits",
        detail=f"{attack} found a version that the model gets wrong for {fallen} of {tried} texts, for {cheap} of them "
        "by editing a single word.",
        remedy="Train with augmented texts of this kind, or normalise the input (spelling, Unicode) before the model."
        if share >= 0.2
        else "",
        standards=standards,
    )


def severity(share: float) -> Severity:
    """Of a share of correct predictions lost."""
    for least, level in _LOSSES:
        if share >= least:
            return level
    return "info"
