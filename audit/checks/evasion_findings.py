"""What a reader must know about an evasion run: how much falls, and whether what stands can be believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...attacks.masking import Diagnosis
from ...attacks.statistics import rate_interval
from ...reports.record import Finding, Severity
from .evasion_masking import flag_findings
from .evasion_measures import Measured, ball_text, radius_text
from .metrics import percent

_LOSSES: tuple[tuple[float, Severity], ...] = ((0.9, "critical"), (0.5, "high"), (0.2, "medium"), (0.05, "low"))
_PAPERS = "arXiv 1802.00420, 1902.06705"
_ADVICE = "Attack with `hopskipjump` or another black-box attack too; do not rely on the robust accuracy until then."


@dataclass(frozen=True, slots=True)
class Sanity:
    """What the checks on the attack itself showed.

    Attributes:
        white_box: whether the attack used gradients.
        diagnosis: of the model; None where there is none.
        stepped: samples that withstood the attack and were given a single gradient step.
        single_step: how many of them that step broke.
    """

    white_box: bool = False
    diagnosis: Diagnosis | None = None
    stepped: int = 0
    single_step: int = 0


def findings(
    measured: Measured, sanity: Sanity, k: int, span: float, attack: str, standards: tuple[str, ...], *, targeted: bool
) -> Iterator[Finding]:
    """How bad it is, then reasons for doubt. ``span`` is the width of the input bounds, k the number of classes."""
    if measured.correct.any():
        yield _loss(measured, attack, standards)
    diagnosis, known = sanity.diagnosis, ()
    if diagnosis is not None:
        yield from flag_findings(diagnosis, standards)
        known = tuple(flag.title for flag in diagnosis.flags)
    masked = sanity.white_box if diagnosis is None else diagnosis.masked
    suspicion = "Possible gradient masking" if masked else "The attack may be too weak"
    for title, detail in _doubts(measured, sanity, k, span, attack, targeted=targeted):
        if title not in known:
            yield Finding(
                severity="high",
                title=f"{suspicion}: {title}",
                detail=f"{detail} The model may be weaker than the robust accuracy says ({_PAPERS}).",
                remedy=_ADVICE,
                standards=standards,
            )


def _loss(measured: Measured, attack: str, standards: tuple[str, ...]) -> Finding:
    right, fallen = int(measured.correct.sum()), int(measured.fallen.sum())
    share = fallen / right
    ball = ball_text(measured.norm, measured.eps)
    return Finding(
        severity=_severity(share),
        title=f"{percent(share)} of correct predictions are overturned within {ball}",
        detail=f"{attack} changed the prediction of {fallen} of {right} correctly classified samples. "
        + ("A stronger attack may change more." if fallen < right else ""),
        remedy="Adversarial training raises robust accuracy; see the variants." if share >= 0.2 else "",
        standards=standards,
    )


def _severity(share: float) -> Severity:
    for least, level in _LOSSES:
        if share >= least:
            return level
    return "info"


def _doubts(
    measured: Measured, sanity: Sanity, k: int, span: float, attack: str, *, targeted: bool
) -> Iterator[tuple[str, str]]:
    if sanity.single_step >= max(2, 0.01 * sanity.stepped):
        yield (
            "a single step beats iterative attacks",
            f"One gradient step broke {sanity.single_step} of {sanity.stepped} samples that withstood {attack}.",
        )
    yield from _plateau(measured, attack)
    if not targeted:
        yield from _unbounded(measured, k, span)


def _plateau(measured: Measured, attack: str) -> Iterator[tuple[str, str]]:
    largest = measured.radii[-1]
    left, right = int(measured.survives(largest).sum()), int(measured.correct.sum())
    for eps in measured.radii:
        fallen = right - int(measured.survives(eps).sum())
        enough = min(left, fallen) >= max(10, 0.05 * right)
        if enough and 2 * eps <= largest and right - left == fallen:
            small, large = (radius_text(measured.norm, value) for value in (eps, largest))
            yield (
                "success does not grow with eps",
                f"{attack} breaks no more samples at {measured.norm} ≤ {large} than at {small}.",
            )
            return


def _unbounded(measured: Measured, k: int, span: float) -> Iterator[tuple[str, str]]:
    """At half the range of the inputs linf can turn every input into the same grey: better than chance is no merit."""
    largest = measured.radii[-1]
    if measured.norm != "linf" or largest < span / 2:
        return
    left, n = int(measured.survives(largest).sum()), len(measured.y)
    if rate_interval(left, n)[0] > 1 / k:
        radius = radius_text("linf", largest)
        yield (
            "a boundless attack fails",
            f"At linf ≤ {radius} any input can be made uniform, yet {percent(left / n)} of the samples survive.",
        )
