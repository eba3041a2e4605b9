"""Findings of all variants, worst first, told once when several variants share them."""

from __future__ import annotations

from dataclasses import dataclass

from .record import AuditRecord, Finding

SEVERITIES = ("critical", "high", "medium", "low", "info")
OWN = "variant"
"""In place of a check's id: findings of a variant itself, from the comparison with the base."""


@dataclass(frozen=True, slots=True)
class FoundOn:
    """One finding with the check that made it and every variant that has it."""

    finding: Finding
    check: str
    check_kind: str
    variants: tuple[str, ...]


def collect(record: AuditRecord) -> list[FoundOn]:
    """All findings: by severity, then in the order of the record, the base before its variants."""
    found: dict[tuple[str, Finding], list[str]] = {}
    kinds = {OWN: OWN}
    for variant in record.variants:
        for finding in variant.findings:
            found.setdefault((OWN, finding), []).append(variant.id)
        for result in variant.results:
            kinds.setdefault(result.id, result.check)
            for finding in result.findings:
                found.setdefault((result.id, finding), []).append(variant.id)
    entries = [FoundOn(finding, check, kinds[check], tuple(on)) for (check, finding), on in found.items()]
    return sorted(entries, key=lambda entry: SEVERITIES.index(entry.finding.severity))


def worst(found: list[FoundOn], most: int = 3, base: str = "") -> list[FoundOn]:
    """For the first screen: each title once, the base before its variants, nothing that is mere information."""
    serious = [entry for entry in found if entry.finding.severity != "info"]
    serious.sort(key=lambda entry: (SEVERITIES.index(entry.finding.severity), base not in entry.variants))
    once: dict[tuple[str, str], FoundOn] = {}
    for entry in serious:
        once.setdefault((entry.check, entry.finding.title), entry)
    return list(once.values())[:most]


def together(found: list[FoundOn]) -> list[list[FoundOn]]:
    """Findings of one check that share severity and title (on several variants, numbers differing) side by side."""
    groups: dict[tuple[str, str, str], list[FoundOn]] = {}
    for entry in found:
        groups.setdefault((entry.check, entry.finding.severity, entry.finding.title), []).append(entry)
    return list(groups.values())


def limits(record: AuditRecord) -> list[str]:
    """What was not examined: the audit's own list, then each check's, each once."""
    own = [text for variant in record.variants for result in variant.results for text in result.not_covered]
    return list(dict.fromkeys((*record.not_covered, *own)))
