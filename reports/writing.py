"""How numbers and verdicts are put into words, the same in every format."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

from .record import AuditRecord, Gate, Metric

DASH = "–"
_SILENT_UNITS = ("auc",)
"""Units that say what a number is, not what it is counted in."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_VERDICT_WORDS = {
    "pass": "Passed",
    "fail": "Failed",
    "inconclusive": "Inconclusive",
    "error": "Incomplete",
    "none": "No gates",
}


def verdict_word(verdict: str) -> str:
    """``pass`` as ``Passed``, and so on."""
    return _VERDICT_WORDS.get(verdict, verdict)


def number(value: float | None, unit: str = "") -> str:
    """``0.713`` as ``71.3 %`` for unit ``rate``, ``0.0313`` or ``1,234`` with its unit otherwise, a dash for None."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return {"inf": "∞", "-inf": "−∞"}.get(str(value), "NaN")
    if unit == "rate":
        return f"{_percent(value, _decimals(value))} %"
    return f"{_plain(value)} {'' if unit in _SILENT_UNITS else unit}".rstrip()


def interval(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """``71.3 % (68.4–74.0)``; without bounds just the value."""
    bounds = bounds_text(value, low, high, unit)
    return f"{number(value, unit)} ({bounds})" if bounds else number(value, unit)


def bounds_text(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """``68.4–74.0``, with the decimals of the value; empty when a bound is missing or no number."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if unit == "rate":
        known = value is not None and math.isfinite(value) and 0 < value < 1
        decimals = _decimals(value) if known and value is not None else max(_decimals(low), _decimals(high))
        low_text, high_text = _percent(low, decimals), _percent(high, decimals)
    else:
        low_text, high_text = _plain(low), _plain(high)
    between = " to " if low < 0 or "×" in low_text + high_text else "–"
    return f"{low_text}{between}{high_text}"


def metric_text(metric: Metric) -> str:
    """The metric with its 95 % interval."""
    return interval(metric.value, metric.ci_low, metric.ci_high, metric.unit)


def metric_label(metric: Metric) -> str:
    """What a person reads: the label, or the name with blanks."""
    return metric.label or metric.name.replace("_", " ")


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if not math.isfinite(seconds) or seconds < 0:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(when: datetime) -> str:
    """``23 November 2026, 14:05 UTC``."""
    zone = f" {when.tzname()}" if when.tzinfo else ""
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def utc(when: datetime) -> str:
    """``2026-11-23T14:05:00Z``; a time without a zone is taken for UTC."""
    aware = when if when.tzinfo else when.replace(tzinfo=UTC)
    with suppress(OverflowError):  # hours from the first or last day of the calendar
        aware = aware.astimezone(UTC)
    return aware.strftime("%Y-%m-%dT%H:%M:%SZ")


def size(count: int) -> str:
    """``12,345``."""
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """``1 gate``, ``2 gates``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(words: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def verdict_sentence(record: AuditRecord) -> str:
    """What the verdict rests on, in one or two sentences."""
    broken = _broken(record)
    if not record.gates:
        ending = f" {broken}" if broken else ""
        return f"No gates were set: this report measures and does not judge.{ending}"
    if record.verdict == "pass":
        whole = f"All {len(record.gates)} gates passed" if len(record.gates) > 1 else "The one gate passed"
        return f"{whole}. {broken}".rstrip()
    counts = [_count(record.gates, verdict) for verdict in ("fail", "inconclusive", "error", "pass")]
    return f"Of {plural(len(record.gates), 'gate')}, {listed(text for text in counts if text)}. {broken}".rstrip()


def _count(gates: tuple[Gate, ...], verdict: str) -> str:
    n = sum(gate.verdict == verdict for gate in gates)
    verb = {"fail": "failed", "pass": "passed", "inconclusive": "is inconclusive", "error": "could not be judged"}
    text = verb[verdict]
    return f"{n} {text if n == 1 else text.replace('is ', 'are ')}" if n else ""


def _broken(record: AuditRecord) -> str:
    checks = sum(result.status == "error" for variant in record.variants for result in variant.results)
    variants = sum(variant.status == "error" for variant in record.variants)
    parts = [f"{plural(n, noun)} did not finish" for n, noun in ((checks, "check"), (variants, "variant")) if n]
    return f"The audit is incomplete: {listed(parts)}." if parts else ""


def _decimals(value: float) -> int:
    """One decimal for a percentage, two within one percent of 0 or 100, more where rounding would reach them."""
    edge = 100 * min(abs(value), abs(1 - value))
    if edge == 0 or edge >= 1:
        return 1
    return next((decimals for decimals in (2, 3) if edge >= 10**-decimals), 4)


def _percent(value: float, decimals: int) -> str:
    return _minus(f"{value * 100:.{decimals}f}")


def _plain(value: float) -> str:
    if value == 0:
        return "0"
    if value == round(value) and abs(value) < 1e15:
        return _minus(f"{round(value):,}")
    if not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.2e}".split("e")
        return _minus(f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}")
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    # 0.8 stays 0.8; a number that was rounded keeps its three digits.
    exact = abs(float(text.replace(",", "")) - value) < 1e-12 * abs(value)
    return _minus(text.rstrip("0").rstrip(".") if exact and decimals else text)


def _minus(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else text
