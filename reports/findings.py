"""Findings of all variants, worst first, told once when several variants share them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .record import AuditRecord, Finding

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")

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
    return sorted(entries, key=_rank)


def worst(found: list[FoundOn], most: int = 3, base: str = "") -> list[FoundOn]:
    """For the first screen: the base before its variants, nothing that is mere information, no theme twice.

    Titles that differ in their numbers alone (two attacks in one ball, the same check on two variants) are one theme,
    shown by the largest number.
    """
    serious = [entry for entry in found if entry.finding.severity != "info"]
    serious.sort(key=lambda entry: (_rank(entry), base not in entry.variants, -_first_number(entry.finding.title)))
    themes: dict[str, FoundOn] = {}
    for entry in serious:
        themes.setdefault(_NUMBER.sub("#", entry.finding.title), entry)
    return list(themes.values())[:most]


def _rank(entry: FoundOn) -> int:
    return SEVERITIES.index(entry.finding.severity)


def _first_number(title: str) -> float:
    found = _NUMBER.search(title)
    return float(found.group()) if found else 0.0


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
