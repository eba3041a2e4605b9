"""A section for a model card in the form that the Hugging Face Hub reads: metadata as YAML, then text.

https://huggingface.co/docs/hub/model-cards (model-index, Papers with Code's results format)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml

from .chapters import base_variant, ordered_variants
from .comparison import gated_metrics, headline_names, metric_rows, variant_title
from .escaping import one_line
from .findings import collect, limits, worst
from .markdown import table_of, text
from .record import AuditRecord, Metric, Result
from .writing import metric_label, metric_text, moment, plural, verdict_sentence, verdict_word

_TASKS = {
    "image": "image-classification",
    "text": "text-classification",
    "tabular": "tabular-classification",
}


def render_model_card(record: AuditRecord) -> str:
    """Metadata (``model-index``) and an evaluation section for a model's ``README.md``."""
    parts = [
        f"---\n{_metadata(record)}---",
        "## Robustness, security and privacy",
        f"Audited with auditorch on {moment(record.created)}: **{verdict_word(record.verdict)}**. "
        f"{verdict_sentence(record)}",
        *_gates(record),
        *_results(record),
        *_risks(record),
        *_limits(record),
        _provenance(record),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(record: AuditRecord) -> str:
    entry = {"name": one_line(record.name) or "model", "results": list(_evaluations(record))}
    return yaml.safe_dump({"model-index": [entry]}, sort_keys=False, allow_unicode=True, width=100)


def _evaluations(record: AuditRecord) -> Iterator[dict[str, Any]]:
    """One result for each check of the model as given."""
    base = base_variant(record)
    for result in base.results if base else ():
        metrics = [_metric(metric, result) for metric in result.metrics if _is_number(metric)]
        if metrics:
            yield {
                "task": {"type": _TASKS.get(record.model.modality, "other"), "name": one_line(result.title)},
                "dataset": {
                    "type": one_line(record.data.source),
                    "name": one_line(record.data.source),
                    "revision": one_line(record.data.sha256),
                },
                "metrics": metrics,
            }


def _metric(metric: Metric, result: Result) -> dict[str, Any]:
    name = one_line(f"{metric_label(metric)} ({result.id})")
    return {"type": one_line(metric.name), "value": float(metric.value or 0.0), "name": name}


def _is_number(metric: Metric) -> bool:
    return metric.value is not None and math.isfinite(metric.value)


def _gates(record: AuditRecord) -> list[str]:
    if not record.gates:
        return []
    rows = [(gate.expression, verdict_word(gate.verdict), gate.reason) for gate in record.gates]
    return ["### What was required", table_of(("Gate", "Verdict", "Reason"), rows)]


def _results(record: AuditRecord) -> list[str]:
    variants = ordered_variants(record)
    rows = []
    for check, kind in {result.id: result.check for variant in variants for result in variant.results}.items():
        lines = metric_rows(check, variants)
        names = headline_names(kind, lines, gated_metrics(record, check))
        for line in (line for line in lines if line.name in names):
            cells = [metric_text(cell.metric) if cell.metric else cell.status for cell in line.cells]
            rows.append((f"{check}: {line.label}", *cells))
    if not rows:
        return []
    columns = ("Metric (95 % interval)", *(variant_title(variant) for variant in variants))
    return ["### What was measured", table_of(columns, rows)]


def _risks(record: AuditRecord) -> list[str]:
    base = base_variant(record)
    found = worst(collect(record), most=10, base=base.id if base else "")
    lines = [
        f"- **{entry.finding.severity}** {text(entry.finding.title)} (on {text(', '.join(entry.variants))}). "
        f"{text(entry.finding.detail)} {text(entry.finding.remedy)}".rstrip()
        for entry in found
    ]
    return ["### Known risks", "\n".join(lines)] if lines else []


def _limits(record: AuditRecord) -> list[str]:
    lines = [f"- {text(sentence)}" for sentence in limits(record)]
    return ["### What was not examined", "\n".join(lines)] if lines else []


def _provenance(record: AuditRecord) -> str:
    model, data = record.model, record.data
    return (
        f"Model sha256 `{_hex(model.sha256)}`, data {text(data.source)} ({plural(data.n, 'sample')}), sha256 "
        f"`{_hex(data.sha256)}`, seed {record.seed}. Check it with `auditorch verify`."
    )


def _hex(value: str) -> str:
    return "".join(char for char in value if char in "0123456789abcdef")
