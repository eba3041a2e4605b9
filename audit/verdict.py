"""The verdict as a short table for the terminal, and as an exit code."""

from __future__ import annotations

from ..reports.gates import gate_value
from ..reports.record import AuditRecord, Gate
from ..reports.writing import verdict_sentence

_EXIT_CODES = {"pass": 0, "none": 0, "fail": 1, "inconclusive": 1, "error": 3}


def exit_code(record: AuditRecord) -> int:
    """0 every gate passed, 1 a gate failed or is inconclusive, 3 the audit is incomplete."""
    return _EXIT_CODES[record.verdict]


def verdict_table(record: AuditRecord) -> str:
    """One line per gate with value, interval and verdict, then what did not finish, then the verdict in a sentence."""
    rows = [(gate.verdict.upper(), gate.expression, gate_value(gate)) for gate in record.gates]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for row, gate in zip(rows, record.gates, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        lines += [f"    {gate.reason}"] if gate.reason else []
        lines += [f"    {part.verdict.upper():<12}  {part.expression}  {gate_value(part)}" for part in gate.parts]
    lines += [f"ERROR  {problem}" for problem in problems(record)]
    return visible("\n".join([*lines, "", verdict_sentence(record)]).strip("\n"))


def gate_text(gate: Gate) -> str:
    """A gate in words: expression, verdict, value with interval and n; the reason; each of several conditions."""
    on = f" on {gate.n} samples" if gate.n else ""
    first = f"{gate.expression}: {gate.verdict}, value {gate_value(gate)}{on}"
    parts = [f"  {part.verdict}: {part.expression}, value {gate_value(part)}" for part in gate.parts]
    return visible("\n".join([first, *filter(None, [gate.reason]), *parts]))


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
