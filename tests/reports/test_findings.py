"""What the first screen says first."""

from __future__ import annotations

from auditorch.reports.findings import FoundOn, worst
from auditorch.reports.record import Finding, Severity


def finding(title: str, severity: Severity = "critical") -> Finding:
    return Finding(severity=severity, title=title, detail="")


def test_the_first_screen_shows_each_theme_once_by_its_largest_number() -> None:
    fgsm = FoundOn(finding("90.2 % of predictions are overturned within linf ≤ 0.1"), "fgsm", "evasion", ("base",))
    auto = FoundOn(finding("95.7 % of predictions are overturned within linf ≤ 0.1"), "linf", "evasion", ("base",))
    other = FoundOn(finding("99.0 % of predictions are overturned within linf ≤ 0.1"), "linf", "evasion", ("weak",))
    round_ball = FoundOn(finding("70.0 % of predictions are overturned within l2 ≤ 1"), "l2", "evasion", ("base",))
    low = FoundOn(finding("Explanations are no better than chance", "low"), "maps", "attribution", ("base",))
    told = FoundOn(finding("Nothing to say", "info"), "maps", "attribution", ("base",))
    assert worst([low, fgsm, other, told, auto, round_ball], base="base") == [auto, round_ball, low]
