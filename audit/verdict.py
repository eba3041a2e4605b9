"""The verdict as a short table for the terminal, and as an exit code."""

from __future__ import annotations

from ..reports.gates import addressed
from ..reports.record import AuditRecord, Gate
from ..reports.writing import interval, verdict_sentence

_EXIT_CODES = {"pass": 0, "none": 0, "fail": 1, "inconclusive": 1, "error": 3}


def exit_code(record: AuditRecord) -> int:
    """0 every gate passed, 1 a gate failed or is inconclusive, 3 the audit is incomplete."""
    return _EXIT_CODES[record.verdict]


def verdict_table(record: AuditRecord) -> str:
    """One line per gate with value, interval and verdict, then what did not finish, then the verdict in a sentence."""
    rows = [(gate.verdict.upper(), gate.expression, _value(record, gate)) for gate in record.gates]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for row, gate in zip(rows, record.gates, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        lines += [f"    {gate.reason}"] if gate.reason else []
    lines += [f"ERROR  {problem}" for problem in problems(record)]
    return visible("\n".join([*lines, "", verdict_sentence(record)]).strip("\n"))


def gate_text(record: AuditRecord, gate: Gate) -> str:
    """A gate in two lines: expression, verdict, value with interval and n; the reason."""
    on = f" on {gate.n} samples" if gate.n else ""
    first = f"{gate.expression}: {gate.verdict}, value {_value(record, gate)}{on}"
    return visible("\n".join([first, *filter(None, [gate.reason])]))


def problems(record: AuditRecord) -> list[str]:
    """One line for each variant and check that did not finish."""
    lines = []
    for variant in record.variants:
        if variant.status == "error":
            lines.append(f"variant {variant.id}: {variant.error}")
        broken = [result for result in variant.results if result.status == "error"]
        lines += [f"{variant.id}:{result.id}: {result.error}" for result in broken]
    return lines


def visible(text: str) -> str:
    """Text that cannot steer a terminal: control characters other than line breaks become escapes."""
    return "".join(char if char == "\n" or char.isprintable() else ascii(char)[1:-1] for char in text)


def _value(record: AuditRecord, gate: Gate) -> str:
    _, metric = addressed(record, gate)
    return interval(gate.value, gate.ci_low, gate.ci_high, metric.unit if metric else "")
