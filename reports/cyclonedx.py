"""CycloneDX 1.6 ML-BOM: the audited model as a component with a model card filled from the record.

https://cyclonedx.org/docs/1.6/json/ (ECMA-424)
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterator
from typing import Any

from .chapters import ordered_variants
from .comparison import gated_metrics, headline_names, metric_rows, variant_title
from .escaping import one_line, slug, visible
from .findings import collect, limits
from .record import AuditRecord, Metric, Table, VariantRecord
from .writing import metric_label, metric_text, utc, verdict_sentence

_MODEL, _DATA = "model", "data"
_INPUTS = {"image": "image", "text": "string", "tabular": "feature vector"}
_NAMESPACE = uuid.UUID("b41d7dfe-2a4c-5b6e-9d0a-6e2f0a8c1d37")


def render_cyclonedx(record: AuditRecord) -> str:
    """The record as a CycloneDX document; the same record gives the same bytes."""
    base, *others = ordered_variants(record) or [VariantRecord(id="base", kind="base")]
    files = list(_files(record))
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_serial(record)}",
        "version": 1,
        "metadata": {
            "timestamp": utc(record.created),
            "tools": {"components": [_tool(record)]},
            "component": _model(record, base, _MODEL),
            "properties": _properties({"verdict": record.verdict, "seed": str(record.seed)}),
        },
        "components": [*(_model(record, one, _reference(one)) for one in others), *files, _data(record)],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [file["bom-ref"] for file in files]},
            *({"ref": _reference(one), "dependsOn": [_MODEL]} for one in others),
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _serial(record: AuditRecord) -> uuid.UUID:
    key = "\n".join((record.model.sha256, record.data.sha256, record.spec_sha256, record.created.isoformat()))
    return uuid.uuid5(_NAMESPACE, key.encode("utf-8", "replace").decode())


def _tool(record: AuditRecord) -> dict[str, Any]:
    return {"type": "application", "name": "auditorch", "version": one_line(record.tool.get("version", "")) or "0"}


def _named(record: AuditRecord) -> dict[str, Any]:
    return {"name": one_line(record.name) or "model", "version": one_line(record.model.sha256[:12]) or "0"}


def _model(record: AuditRecord, variant: VariantRecord, reference: str) -> dict[str, Any]:
    """The model as given, or under a treatment; the hash is that of the weights, where the audit made them."""
    name = _named(record)
    if reference != _MODEL:
        name["name"] = f"{name['name']}: {one_line(variant_title(variant))}"
    facts = {"variant": variant.id, "model.sha256": record.model.sha256, "weights": record.model.weights}
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": reference,
        **name,
        "description": visible(variant.summary) or verdict_sentence(record),
        "modelCard": _card(record, variant),
        "properties": _properties(facts),
    }
    weights = [item for item in variant.evidence if item.kind == "weights" and _is_sha256(item.sha256)]
    if weights:
        component["hashes"] = [{"alg": "SHA-256", "content": weights[0].sha256}]
    return component


def _reference(variant: VariantRecord) -> str:
    return f"variant-{slug(variant.id)}"


def _card(record: AuditRecord, variant: VariantRecord) -> dict[str, Any]:
    parameters = {
        "approach": {"type": "supervised"},
        "task": "classification",
        "datasets": [{"ref": _DATA}],
        "inputs": [{"format": _INPUTS.get(record.model.modality, visible(record.model.modality))}],
        "outputs": [{"format": f"one of {len(record.data.classes)} classes"}],
    }
    if record.model.architecture:
        parameters["modelArchitecture"] = visible(record.model.architecture)
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(variant))},
        "considerations": {
            "technicalLimitations": [visible(text) for text in limits(record)],
            "performanceTradeoffs": list(_trade_offs(record, variant)),
            "ethicalConsiderations": [
                {
                    "name": visible(f"{entry.finding.severity}: {entry.finding.title}. {entry.finding.detail}"),
                    **({"mitigationStrategy": visible(entry.finding.remedy)} if entry.finding.remedy else {}),
                }
                for entry in collect(record)
                if variant.id in entry.variants
            ],
        },
        "properties": _properties(
            {f"gate: {gate.expression}": gate.verdict for gate in record.gates if gate.variant == variant.id}
        ),
    }


def _metrics(variant: VariantRecord) -> Iterator[dict[str, Any]]:
    """Every metric that has a value; ``slice`` names the check that measured it."""
    for result in variant.results:
        for metric in result.metrics:
            if metric.value is not None and math.isfinite(metric.value):
                yield _metric(metric, f"{result.id}: {result.title}")
    for metric in variant.metrics:
        if metric.value is not None and math.isfinite(metric.value):
            yield _metric(metric, "the model itself")


def _metric(metric: Metric, where: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": one_line(metric.name), "value": f"{metric.value:.6g}", "slice": one_line(where)}
    low, high = metric.ci_low, metric.ci_high
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        entry["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
    return entry


def _trade_offs(record: AuditRecord, variant: VariantRecord) -> Iterator[str]:
    """What a defense gives and takes, in the headline metrics of each check; nothing for the base."""
    base, *others = ordered_variants(record) or [variant]
    if variant not in others:
        return
    for result in variant.results:
        rows = metric_rows(result.id, [base, variant])
        names = headline_names(result.check, rows, gated_metrics(record, result.id))
        for row in (row for row in rows if row.name in names):
            before, after = (cell.metric for cell in row.cells)
            if before and after and before.value is not None and after.value is not None:
                label = metric_label(after)
                yield visible(f"{result.id}, {label}: {metric_text(after)}; without the defense {metric_text(before)}")


def _files(record: AuditRecord) -> Iterator[dict[str, Any]]:
    """The files of the model, from the check that scans them."""
    results = [result for variant in record.variants for result in variant.results if result.check == "model_file"]
    tables = [figure for result in results for figure in result.figures if isinstance(figure, Table)]
    for place, row in enumerate(tables[0].rows if tables else ()):
        cells = dict(zip(tables[0].columns, row, strict=False))
        name = one_line(str(cells.get("file", ""))) or "file"
        yield {
            "type": "file",
            "bom-ref": f"file-{place + 1}-{slug(name)}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": cells["sha256"]}] if _is_sha256(cells.get("sha256")) else [],
            "properties": _properties({key: str(cells.get(key, "")) for key in ("role", "format", "verdict")}),
        }


def _data(record: AuditRecord) -> dict[str, Any]:
    data = record.data
    return {
        "type": "data",
        "bom-ref": _DATA,
        "name": one_line(data.source) or "data",
        "version": one_line(data.sha256[:12]) or "0",
        "data": [
            {
                "type": "dataset",
                "name": one_line(data.source) or "data",
                "description": f"{data.n} labelled samples of {len(data.classes)} classes that the audit used",
            }
        ],
        "properties": _properties({"data.sha256": data.sha256, "samples": str(data.n)}),
    }


def _properties(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": f"auditorch:{one_line(name)}", "value": visible(value)} for name, value in values.items()]


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
