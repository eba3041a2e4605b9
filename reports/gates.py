"""Gates as rows of the report: the number in its unit, the interval drawn against the threshold."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from markupsafe import Markup

from .axes import Axis
from .escaping import visible
from .record import AuditRecord, Gate, Metric, Result
from .writing import interval, number

_ADDRESS = re.compile(r"\s*(?:(?P<variant>[^\s:<>=!]+):)?(?P<check>[^\s.<>=!]+)\.(?P<metric>[^\s<>=!]+)")
_OPERATOR = re.compile(r"(<=|>=|==|!=|<|>)")
_WIDTH, _HEIGHT = 180, 26
_ORDER = {"error": 0, "fail": 1, "inconclusive": 2, "pass": 3}


@dataclass(frozen=True, slots=True)
class GateRow:
    """One gate, ready for a table."""

    gate: Gate
    check: str
    unit: str
    value: str
    threshold: str
    bar: Markup


def gate_rows(record: AuditRecord) -> list[GateRow]:
    """All gates, those that did not pass first."""
    rows = [gate_row(record, gate, index) for index, gate in enumerate(record.gates)]
    return sorted(rows, key=lambda row: _ORDER[row.gate.verdict])


def gate_row(record: AuditRecord, gate: Gate, index: int) -> GateRow:
    """One gate with its numbers written in the unit of its metric."""
    check, metric = addressed(record, gate)
    unit = metric.unit if metric else ""
    return GateRow(
        gate=gate,
        check=check.id if check else "",
        unit=unit,
        value=interval(gate.value, gate.ci_low, gate.ci_high, unit),
        threshold=number(gate.threshold, unit),
        bar=interval_bar(gate, unit, f"gate-bar-{index + 1}"),
    )


def addressed(record: AuditRecord, gate: Gate) -> tuple[Result | None, Metric | None]:
    """The result and metric that a gate's expression begins with; None where there is none."""
    match = _ADDRESS.match(gate.expression)
    if match is None:
        return None, None
    variant = record.variant(match["variant"] or gate.variant)
    result = variant.result(match["check"]) if variant else None
    return result, result.metric(match["metric"]) if result else None


def interval_bar(gate: Gate, unit: str, uid: str) -> Markup:
    """The interval as a line, the value as a dot, the threshold as a tick, the good side shaded."""
    if not _finite(gate.value) or not _finite(gate.threshold) or gate.value is None or gate.threshold is None:
        return Markup("")
    low, high = (gate.ci_low, gate.ci_high) if _finite(gate.ci_low, gate.ci_high) else (gate.value, gate.value)
    axis = _axis(low or 0.0, high or 0.0, gate.value, gate.threshold, unit)
    shade = _shade(gate.expression, axis(gate.threshold))
    title = f"{interval(gate.value, gate.ci_low, gate.ci_high, unit)} against {number(gate.threshold, unit)}"
    return Markup(
        '<svg class="gatebar {verdict}" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{id}">'
        '<title id="{id}">{title}</title>{shade}<path class="track" d="M0,13H{w}"/>'
        '<path class="threshold" d="M{t},3V23"/><path class="range" d="M{a},13H{b}"/>'
        '<circle class="value" cx="{v}" cy="13" r="4"/></svg>'
    ).format(
        verdict=gate.verdict,
        w=_WIDTH,
        h=_HEIGHT,
        id=uid,
        title=visible(title),
        shade=shade,
        t=_px(axis(gate.threshold)),
        a=_px(axis(low or 0.0)),
        b=_px(axis(high or 0.0)),
        v=_px(axis(gate.value)),
    )


def _axis(low: float, high: float, value: float, threshold: float, unit: str) -> Axis:
    """Wide enough for interval and threshold with air around; a rate's axis ends at 0 and 1."""
    bottom, top = min(low, value, threshold), max(high, value, threshold)
    air = 0.35 * ((top - bottom) or abs(top) or 1.0)
    bottom, top = bottom - air, top + air
    if unit == "rate":
        bottom, top = max(bottom, min(0.0, value)), min(top, max(1.0, value))
    return Axis("linear", bottom, top, 6, _WIDTH - 6)


def _shade(expression: str, threshold: float) -> Markup:
    operator = _OPERATOR.search(expression)
    if operator is None or operator[1] in ("==", "!="):
        return Markup("")
    above = operator[1].startswith(">")
    start, width = (threshold, _WIDTH - threshold) if above else (0.0, threshold)
    return Markup('<rect class="good" x="{}" y="5" width="{}" height="16"/>').format(_px(start), _px(width))


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
