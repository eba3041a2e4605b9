"""The verdict as a short table for the terminal, and as an exit code."""

from __future__ import annotations

from ..reports.gates import addressed
from ..reports.record import AuditRecord, Gate
from ..reports.writing import interval, number, verdict_sentence

_EXIT_CODES = {"pass": 0, "none": 0, "fail": 1, "inconclusive": 1, "error": 3}


def exit_code(record: AuditRecord) -> int:
    """0 every gate passed, 1 a gate failed or is inconclusive, 3 the audit is incomplete."""
    return _EXIT_CODES[record.verdict]


def verdict_table(record: AuditRecord) -> str:
    """One line per gate with value, interval and verdict, then what went wrong, then the verdict in a sentence."""
    rows = [_gate_row(record, gate) for gate in record.gates]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    for row, gate in zip(range(len(rows)), record.gates, strict=True):
        if gate.reason:
            lines[row] += f"\n    {gate.reason}"
    return visible("\n".join([*lines, *_problems(record), "", verdict_sentence(record)]).strip("\n"))


def visible(text: str) -> str:
    """Text that cannot steer a terminal: control characters other than line breaks become escapes."""
    return "".join(char if char == "\n" or char.isprintable() else ascii(char)[1:-1] for char in text)


def _gate_row(record: AuditRecord, gate: Gate) -> tuple[str, str, str]:
    _, metric = addressed(record, gate)
    unit = metric.unit if metric else ""
    value = interval(gate.value, gate.ci_low, gate.ci_high, unit) if gate.value is not None else number(None)
    return gate.verdict.upper(), gate.expression, value


def _problems(record: AuditRecord) -> list[str]:
    lines = []
    for variant in record.variants:
        if variant.status == "error":
            lines.append(f"ERROR  variant {variant.id}: {variant.error}")
        broken = [result for result in variant.results if result.status == "error"]
        lines += [f"ERROR  {variant.id}:{result.id}: {result.error}" for result in broken]
    return lines
