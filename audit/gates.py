"""Gates: what must hold of a metric, and whether the audit shows it."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..attacks.statistics import Method, rate_intervals
from ..reports.record import Gate, GateVerdict, Metric, OverallVerdict, Result, VariantRecord
from .errors import SpecError
from .registry import unknown

Confidence = Literal["interval", "none"]

BASE = "base"

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_GATE = re.compile(
    r"\s*(?:(?P<variant>[A-Za-z0-9][\w-]*)\s*:\s*)?(?P<check>[A-Za-z0-9][\w-]*)\.(?P<metric>[A-Za-z_][\w.-]*)"
    r"\s*(?P<operator>>=|<=|==|>|<)\s*(?P<threshold>[^\s<>=](?:.*\S)?)\s*",
    re.ASCII,
)
_DIGITS = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(rf"(?P<number>[-+]?{_DIGITS})(?:\s*/\s*(?P<divisor>{_DIGITS}))?\s*(?P<percent>%)?", re.ASCII)
_MAX_SAMPLES = 10**9


@dataclass(frozen=True, slots=True)
class ParsedGate:
    """``[variant:]check.metric operator threshold``; ``variant`` is None where the expression names none (the base)."""

    expression: str
    variant: str | None
    check_id: str
    metric: str
    operator: str
    threshold: float

    @property
    def on(self) -> str:
        """The id of the variant whose metric is meant."""
        return self.variant or BASE

    @property
    def wants_high(self) -> bool:
        return self.operator in (">=", ">")

    def holds(self, value: float) -> bool:
        """Whether a value known exactly would satisfy the gate."""
        return _HOLDS[self.operator](value, self.threshold)


def parse_gate(expression: str) -> ParsedGate:
    """Reads a gate such as ``linf.robust_accuracy >= 40%`` or ``dp_sgd:membership.tpr_at_fpr_0.01 <= 0.05``.

    The threshold is a number, a fraction (``8/255``) or a percentage.

    Raises:
        SpecError: when it is none of these.
    """
    found = _GATE.fullmatch(expression)
    if found is None:
        raise SpecError(
            f"gate {expression[:200]!r}: write <check id>.<metric> >= <number>, with >=, >, <=, < or ==, "
            "such as linf.robust_accuracy >= 0.40; a variant goes in front: dp_sgd:performance.accuracy >= 0.8"
        )
    return ParsedGate(
        expression=expression.strip(),
        variant=found["variant"],
        check_id=found["check"],
        metric=found["metric"],
        operator=found["operator"],
        threshold=_threshold(found["threshold"], expression),
    )


def _threshold(text: str, expression: str) -> float:
    found = _NUMBER.fullmatch(text)
    value = math.nan
    if found is not None and float(found["divisor"] or 1) != 0:
        value = float(found["number"]) / float(found["divisor"] or 1) / (100 if found["percent"] else 1)
    if not math.isfinite(value):
        raise SpecError(f"gate {expression[:200]!r}: {text[:40]!r} is no number; write 0.4, 40% or 8/255")
    return value


def evaluate_gate(gate: ParsedGate, variants: Sequence[VariantRecord], confidence: Confidence = "interval") -> Gate:
    """Judges a gate by the results of an audit.

    With ``interval`` a gate passes when the metric's 95 % interval lies wholly on the good side, fails when it lies
    wholly on the bad side, and is inconclusive between. With ``none``, or for a metric without interval, the
    point estimate decides.
    """
    metric, problem = _find(gate, variants)
    if metric is None or metric.value is None:
        return _judged(gate, "error", problem, metric)
    low, high = metric.ci_low, metric.ci_high
    if confidence == "none" or low is None or high is None or math.isnan(low) or math.isnan(high):
        why = "as the gate asks" if confidence == "none" else "the metric has no interval"
        verdict = "pass" if gate.holds(metric.value) else "fail"
        return _judged(gate, verdict, f"compared by the point estimate: {why}", metric)
    return _by_interval(gate, metric, low, high)


def overall(gates: Iterable[Gate], variants: Iterable[VariantRecord]) -> OverallVerdict:
    """The worst verdict: error, fail, inconclusive, pass; ``none`` without gates.

    A check or variant that did not finish makes it ``error`` whatever the gates say.
    """
    broken = any(
        variant.status == "error" or any(result.status == "error" for result in variant.results) for variant in variants
    )
    found: set[str] = {gate.verdict for gate in gates} | ({"error"} if broken else set())
    order: tuple[GateVerdict, ...] = ("error", "fail", "inconclusive", "pass")
    for verdict in order:
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


def _find(gate: ParsedGate, variants: Sequence[VariantRecord]) -> tuple[Metric | None, str]:
    """The metric, or None and why there is none; a metric without value comes with the reason too."""
    variant = next((variant for variant in variants if variant.id == gate.on), None)
    if variant is None:
        return None, unknown("variant", gate.on, [variant.id for variant in variants])
    if variant.status != "ok":
        return None, f"the variant {variant.id!r} could not be built: {variant.error}"
    result = variant.result(gate.check_id)
    if result is None:
        return None, _not_run(gate, variant, variants)
    if result.status != "ok":
        word = "did not finish" if result.status == "error" else "was skipped"
        return None, f"the check {result.id!r} {word}: {result.error}"
    metric = result.metric(gate.metric)
    if metric is None:
        return None, unknown(f"metric of {result.id!r}:", gate.metric, [metric.name for metric in result.metrics])
    return _with_value(metric, result)


def _with_value(metric: Metric, result: Result) -> tuple[Metric, str]:
    if metric.value is None or math.isnan(metric.value):
        reasons = [warning for warning in result.warnings if metric.name in warning]
        return metric.model_copy(update={"value": None}), "; ".join(["the metric is undefined", *reasons])
    return metric, ""


def _not_run(gate: ParsedGate, variant: VariantRecord, variants: Sequence[VariantRecord]) -> str:
    elsewhere = [other.id for other in variants if other.result(gate.check_id) is not None]
    if elsewhere:
        return f"the check {gate.check_id!r} ran on {', '.join(elsewhere)}, not on {variant.id}"
    return unknown("check", gate.check_id, [result.id for result in variant.results])


def _by_interval(gate: ParsedGate, metric: Metric, low: float, high: float) -> Gate:
    ends = gate.holds(low), gate.holds(high)
    if gate.operator == "==":
        if low == high == gate.threshold:
            return _judged(gate, "pass", "", metric)
        if not low <= gate.threshold <= high:
            return _judged(gate, "fail", "", metric)
        return _judged(
            gate, "inconclusive", "an interval can refute equality, not show it; use confidence: none", metric
        )
    if all(ends):
        return _judged(gate, "pass", "", metric)
    if not any(ends):
        return _judged(gate, "fail", "", metric)
    return _judged(gate, "inconclusive", _what_would_decide(gate, metric, low, high), metric)


def _what_would_decide(gate: ParsedGate, metric: Metric, low: float, high: float) -> str:
    value = metric.value
    assert value is not None
    straddles = f"the 95 % interval {low:.4g} to {high:.4g} holds the threshold"
    if value == gate.threshold:
        return f"{straddles}, and the estimate equals it: no number of samples decides while that stays so"
    outcome = "pass" if gate.holds(value) else "fail"
    if not metric.n:
        return f"{straddles}; a narrower interval around the present estimate would mean {outcome}"
    needed = _needed(metric, value, gate.threshold, low, high)
    if needed is None:
        return f"{straddles}; the estimate is so near that no practical number of samples decides"
    return f"{straddles}; about {needed:,} samples (now {metric.n:,}) at the present estimate would mean {outcome}"


def _needed(metric: Metric, value: float, threshold: float, low: float, high: float) -> int | None:
    assert metric.n
    if metric.method in ("wilson", "clopper-pearson") and 0 <= value <= 1 and 0 <= threshold <= 1:
        needed = samples_needed(value, threshold, "wilson" if metric.method == "wilson" else "exact")
    else:
        # Any other interval narrows with the root of n.
        arm = value - low if threshold < value else high - value
        needed = math.ceil(metric.n * (arm / (value - threshold)) ** 2)
    return None if needed is None or needed >= _MAX_SAMPLES else max(needed, metric.n + 1)


def _judged(gate: ParsedGate, verdict: GateVerdict, reason: str, metric: Metric | None) -> Gate:
    return Gate(
        expression=gate.expression,
        variant=gate.on,
        verdict=verdict,
        threshold=gate.threshold,
        reason=reason,
        value=metric.value if metric else None,
        ci_low=metric.ci_low if metric else None,
        ci_high=metric.ci_high if metric else None,
        n=metric.n if metric else None,
    )
