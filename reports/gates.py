"""Gates as rows of the report: the number in its unit, the interval drawn against the threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from .axes import Axis
from .escaping import visible
from .record import AuditRecord, Gate, GatePart
from .writing import interval, number

_WIDTH, _HEIGHT = 180, 26
_ORDER = {"error": 0, "fail": 1, "inconclusive": 2, "pass": 3}


@dataclass(frozen=True, slots=True)
class GateRow:
    """One gate, or one condition of a gate, ready for a table; ``parts`` are the conditions of a gate with several."""

    gate: GatePart
    value: str
    threshold: str
    bar: Markup
    parts: tuple[GateRow, ...] = ()


def gate_rows(record: AuditRecord) -> list[GateRow]:
    """All gates, those that did not pass first."""
    rows = [gate_row(gate, f"gate-bar-{index + 1}") for index, gate in enumerate(record.gates)]
    return sorted(rows, key=lambda row: _ORDER[row.gate.verdict])


def gate_row(gate: GatePart, uid: str) -> GateRow:
    """One gate with its numbers written in the unit of its metric."""
    parts = gate.parts if isinstance(gate, Gate) else ()
    return GateRow(
        gate=gate,
        value=gate_value(gate),
        threshold=number(gate.threshold, gate.unit),
        bar=interval_bar(gate, uid),
        parts=tuple(gate_row(part, f"{uid}-{place + 1}") for place, part in enumerate(parts)),
    )


def gate_value(gate: GatePart) -> str:
    """The value with its interval, in its unit."""
    return interval(gate.value, gate.ci_low, gate.ci_high, gate.unit)


def gates_note(record: AuditRecord) -> str:
    """How far the verdicts can be trusted when there are several: what correction is needed, and what is not."""
    judged = sum(max(1, len(gate.parts)) for gate in record.gates if gate.ci_low is not None)
    if not judged:
        return ""
    note = (
        "A condition passes when its whole 95 % interval is on the good side (for rates the exact one), so one that "
        "does not hold passes in about 2.5 of 100 audits, a rate in at most that."
    )
    if judged == 1:
        return note
    return (
        f"{note} All gates must pass, so this holds for the audit's pass as well, without correction. "
        f"A condition just met can fail by chance in as many: of {judged} conditions, some would in up to "
        f"{min(100.0, 2.5 * judged):g} of 100 audits (Bonferroni's bound)."
    )


def interval_bar(gate: GatePart, uid: str) -> Markup:
    """The interval as a line, the value as a dot, the threshold as a tick, the good side shaded."""
    if not _finite(gate.value) or not _finite(gate.threshold) or gate.value is None or gate.threshold is None:
        return Markup("")
    low, high = (gate.ci_low, gate.ci_high) if _finite(gate.ci_low, gate.ci_high) else (gate.value, gate.value)
    axis = _axis(low or 0.0, high or 0.0, gate.value, gate.threshold, gate.unit)
    shade = _shade(gate.operator, axis(gate.threshold))
    title = f"{gate_value(gate)} against {number(gate.threshold, gate.unit)}"
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


def _shade(operator: str, threshold: float) -> Markup:
    if operator[:1] not in ("<", ">"):
        return Markup("")
    above = operator.startswith(">")
    start, width = (threshold, _WIDTH - threshold) if above else (0.0, threshold)
    return Markup('<rect class="good" x="{}" y="5" width="{}" height="16"/>').format(_px(start), _px(width))


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
