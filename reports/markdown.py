"""A short Markdown summary for a pull-request comment: the verdict, the gates, the worst findings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .chapters import ordered_variants
from .comparison import gated_metrics, headline_names, metric_rows, variant_title
from .escaping import one_line, shorten
from .findings import collect, limits, worst
from .gates import GateRow, gate_rows
from .record import AuditRecord
from .writing import DASH, metric_text, moment, plural, verdict_sentence, verdict_word

_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "error": "⚠️", "none": "ℹ️"}
_LONGEST = 200


def render_markdown(record: AuditRecord) -> str:
    """The summary in GitHub-flavoured Markdown; text from model and data cannot leave its place in it."""
    parts = [
        f"## {_SIGNS[record.verdict]} {text(record.name)}: {verdict_word(record.verdict)}",
        verdict_sentence(record),
        *_gates(record),
        *_findings(record),
        *_metrics(record),
        _footer(record),
    ]
    return "\n\n".join(parts) + "\n"


def text(value: str, longest: int = _LONGEST) -> str:
    """``value`` on one line, with nothing left that Markdown, HTML, mentions or bare links would act on."""
    short = shorten(one_line(value), longest)
    escaped = short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"([\\`*_{}\[\]#+!|~$^])", r"\\\1", escaped)
    # A zero-width space keeps names and addresses from becoming mentions and links.
    escaped = re.sub(r"@(?=\w)", "@\u200b", escaped)
    return re.sub(r"(?i)(\w+:)(?=//)|(www)(?=\.)|(mailto|xmpp)(?=:)", lambda match: f"{match[0]}\u200b", escaped)


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells cannot leave their place."""
    lines = [f"| {' | '.join(text(cell) for cell in row)} |" for row in (columns, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(columns)}", *lines[1:]])


def _gates(record: AuditRecord) -> list[str]:
    if not record.gates:
        return []
    head = "| | Gate | Variant | Value (95 % interval) | n | Reason |\n|---|---|---|---:|---:|---|"
    rows = [one for row in gate_rows(record) for one in (row, *row.parts)]
    return ["\n".join([head, *(_gate(row) for row in rows)])]


def _gate(row: GateRow) -> str:
    gate = row.gate
    count = f"{gate.n:,}" if gate.n is not None else DASH
    cells = (
        f"{_SIGNS[gate.verdict]} {verdict_word(gate.verdict)}",
        text(gate.expression),
        text(gate.variant),
        row.value,
        count,
        text(gate.reason),
    )
    return f"| {' | '.join(cells)} |"


def _findings(record: AuditRecord) -> list[str]:
    found = collect(record)
    base = ordered_variants(record)[0].id if record.variants else ""
    top = worst(found, base=base)
    if not top:
        return []
    lines = [
        f"- **{entry.finding.severity}** {text(entry.finding.title)} ({text(entry.check)}): "
        + text(entry.finding.detail)
        for entry in top
    ]
    return [f"### Worst of {plural(len(found), 'finding')}", "\n".join(lines)]


def _metrics(record: AuditRecord) -> list[str]:
    """Headline metrics of every variant, folded away."""
    variants = ordered_variants(record)
    checks = {result.id: result.check for variant in variants for result in variant.results}
    lines = []
    for check, kind in checks.items():
        rows = metric_rows(check, variants)
        names = headline_names(kind, rows, gated_metrics(record, check))
        for row in (row for row in rows if row.name in names):
            cells = [metric_text(cell.metric) if cell.metric else text(cell.status) for cell in row.cells]
            lines.append(f"| {text(check)}: {text(row.label)} | {' | '.join(text(cell) for cell in cells)} |")
    if not lines:
        return []
    head = f"| Metric | {' | '.join(text(variant_title(variant)) for variant in variants)} |"
    table = "\n".join([head, f"|---|{'---:|' * len(variants)}", *lines])
    return [f"<details><summary>Headline metrics</summary>\n\n{table}\n\n</details>"]


def _footer(record: AuditRecord) -> str:
    model, data = record.model, record.data
    uncovered = len(limits(record))
    note = f" Not covered: {plural(uncovered, 'point')}, see the report." if uncovered else ""
    return (
        f"Model {text(model.weights or model.source)} (sha256 {text(model.sha256[:12])}…), "
        f"data {text(data.source)} ({plural(data.n, 'sample')}), seed {record.seed}, {moment(record.created)}.{note}"
    )
