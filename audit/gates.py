"""Gates: what must hold of a metric, and whether the audit shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ..attacks.statistics import Method, rate_intervals
from ..reports.record import Gate, GatePart, GateVerdict, OverallVerdict, VariantRecord
from .gate_language import BASE, EVERY, Address, Clause, ParsedGate, parse_gate
from .gate_values import Ground, Quantity

__all__ = [
    "BASE",
    "Address",
    "Clause",
    "Confidence",
    "Ground",
    "ParsedGate",
    "evaluate_gate",
    "overall",
    "parse_gate",
    "samples_needed",
]

Confidence = Literal["interval", "none"]

_MAX_SAMPLES = 10**9
_WORST_FIRST: tuple[GateVerdict, ...] = ("error", "fail", "inconclusive", "pass")


def evaluate_gate(
    gate: ParsedGate,
    variants: Sequence[VariantRecord],
    confidence: Confidence = "interval",
    *,
    directory: Path | None = None,
    classes: Sequence[str] = (),
) -> Gate:
    """Judges a gate by the results of an audit.

    With ``interval`` a condition passes when the metric's 95 % interval lies wholly on the good side, fails when it
    lies wholly on the bad side, and is inconclusive between. Rates are judged by their exact (Clopper-Pearson)
    interval, so that a condition that does not hold passes in at most 2.5 of 100 audits. With ``none``, or for a
    metric without interval, the point estimate decides. A gate of several conditions is as good as its worst.

    Args:
        directory: the output folder; conditions on one class need its evidence, and comparisons of two metrics use
            it to compare sample by sample.
        classes: names of the classes, in order of the labels.
    """
    ground = Ground(tuple(variants), directory, tuple(classes))
    parts = [_judge(clause, ground, confidence) for clause in _on_each_variant(gate.clauses, ground)]
    deciding = min(parts, key=lambda part: _WORST_FIRST.index(part.verdict))
    shown = {**deciding.model_dump(), "expression": gate.expression}
    if len(parts) == 1:
        return Gate(**shown)
    shown["reason"] = f"{deciding.expression}: {deciding.reason}" if deciding.verdict != "pass" else ""
    return Gate(**shown, parts=tuple(parts))


def overall(gates: Iterable[Gate], variants: Iterable[VariantRecord]) -> OverallVerdict:
    """The worst verdict: error, fail, inconclusive, pass; ``none`` without gates.

    A check or variant that did not finish makes it ``error`` whatever the gates say.
    """
    broken = any(
        variant.status == "error" or any(result.status == "error" for result in variant.results) for variant in variants
    )
    found: set[str] = {gate.verdict for gate in gates} | ({"error"} if broken else set())
    for verdict in _WORST_FIRST:
        if verdict in found:
            return verdict
    return "none"


def samples_needed(rate: float, threshold: float, method: Method = "wilson") -> int | None:
    """How many samples would put the threshold outside the 95 % interval if the rate stayed as it is.

    None when no number does: the rate equals the threshold, or is so near that a billion would not do.
    """

    def decided(n: int) -> bool:
        low, high = rate_intervals(rate * n, n, method=method)
        return bool(high < threshold or low > threshold)

    if rate == threshold or not decided(_MAX_SAMPLES):
        return None
    too_few, enough = 0, 1
    while not decided(enough):
        too_few, enough = enough, enough * 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if decided(middle) else (middle, enough)
    return enough


def _on_each_variant(clauses: Sequence[Clause], ground: Ground) -> list[Clause]:
    """``*:`` written out: one clause for every variant that was to be built."""
    each = [variant.id for variant in ground.variants]
    return [
        one
        for clause in clauses
        for one in ([clause.on(name) for name in each] if clause.subject.variant == EVERY else [clause])
        if not (one is not clause and one.reference is not None and _same(one.subject, one.reference))
    ] or [clauses[0].on(BASE)]


def _same(first: Address, second: Address) -> bool:
    """A metric always equals itself: `*: ... >= base - 0.02` says nothing of the base."""
    return (first.on, first.check, first.metric, first.label) == (second.on, second.check, second.metric, second.label)


def _judge(clause: Clause, ground: Ground, confidence: Confidence) -> GatePart:
    found = ground.quantity(clause)
    if found.value is None:
        return _judged(clause, "error", found.problem, found)
    low, high = found.low, found.high
    if confidence == "none" or low is None or high is None:
        why = "as the gate asks" if confidence == "none" else "the metric has no interval"
        verdict = "pass" if clause.holds(found.value) else "fail"
        return _judged(clause, verdict, f"compared by the point estimate: {why}", found)
    verdict = _by_interval(clause, low, high)
    reason = _what_would_decide(clause, found, found.value, low, high) if verdict == "inconclusive" else ""
    return _judged(clause, verdict, reason, found)


def _by_interval(clause: Clause, low: float, high: float) -> GateVerdict:
    if clause.operator == "==":
        if low == high == clause.threshold:
            return "pass"
        return "inconclusive" if low <= clause.threshold <= high else "fail"
    ends = clause.holds(low), clause.holds(high)
    return "pass" if all(ends) else "inconclusive" if any(ends) else "fail"


def _what_would_decide(clause: Clause, found: Quantity, value: float, low: float, high: float) -> str:
    if clause.operator == "==":
        return "an interval can refute equality, not show it; use confidence: none"
    straddles = f"the 95 % interval {low:.4g} to {high:.4g} holds the threshold"
    if value == clause.threshold:
        return f"{straddles}, and the estimate equals it: no number of samples decides while that stays so"
    outcome = "pass" if clause.holds(value) else "fail"
    if not found.n:
        return f"{straddles}; a narrower interval around the present estimate would mean {outcome}"
    needed = _needed(found, value, clause.threshold, low, high)
    if needed is None:
        return f"{straddles}; the estimate is so near that no practical number of samples decides"
    return f"{straddles}; about {needed:,} samples (now {found.n:,}) at the present estimate would mean {outcome}"


def _needed(found: Quantity, value: float, threshold: float, low: float, high: float) -> int | None:
    assert found.n
    if found.exact and 0 <= threshold <= 1:
        needed = samples_needed(value, threshold, "exact")
    else:
        # Any other interval narrows with the root of n.
        arm = value - low if threshold < value else high - value
        needed = math.ceil(found.n * (arm / (value - threshold)) ** 2)
    return None if needed is None or needed >= _MAX_SAMPLES else max(needed, found.n + 1)


def _judged(clause: Clause, verdict: GateVerdict, reason: str, found: Quantity) -> GatePart:
    return GatePart(
        expression=str(clause),
        variant=clause.subject.on,
        verdict=verdict,
        threshold=clause.threshold,
        operator=clause.operator,
        unit=found.unit,
        check=clause.subject.check,
        reason="; ".join(filter(None, [found.note, reason])),
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        n=found.n,
    )
