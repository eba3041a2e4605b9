"""Every format is valid by its official schema, whatever the record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xmlschema
import yaml
from auditorch.reports.cyclonedx import render_cyclonedx
from auditorch.reports.junit import render_junit
from auditorch.reports.model_card import render_model_card
from auditorch.reports.record import AuditRecord, Table, VariantRecord
from auditorch.reports.sarif import render_sarif
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from jsonschema import Draft4Validator

from .example import empty

SCHEMAS = Path(__file__).parent / "schemas"


@pytest.fixture(scope="module")
def broken(record: AuditRecord) -> AuditRecord:
    """An audit in which a variant could not be built."""
    failed = VariantRecord(id="dp", kind="dp_sgd", status="error", error="out of memory")
    return record.model_copy(update={"variants": (*record.variants, failed), "verdict": "error"})


@pytest.fixture(scope="module")
def records(record: AuditRecord, hostile_record: AuditRecord, broken: AuditRecord) -> dict[str, AuditRecord]:
    return {"example": record, "hostile": hostile_record, "empty": empty(), "broken": broken}


@pytest.fixture(scope="module")
def sarif() -> Draft4Validator:
    return Draft4Validator(json.loads((SCHEMAS / "sarif-2.1.0-rtm.5.json").read_text()))


@pytest.fixture(scope="module")
def junit() -> xmlschema.XMLSchema10:
    return xmlschema.XMLSchema10(str(SCHEMAS / "junit-10.xsd"))


@pytest.mark.parametrize("name", ["example", "hostile", "empty", "broken"])
def test_sarif(sarif: Draft4Validator, records: dict[str, AuditRecord], name: str) -> None:
    log = json.loads(render_sarif(records[name]))
    assert [error.message for error in sarif.iter_errors(log)] == []
    log["runs"][0]["invocations"][0]["executionSuccessful"] = "yes"
    assert not sarif.is_valid(log)


@pytest.mark.parametrize("name", ["example", "hostile", "empty", "broken"])
def test_junit(junit: xmlschema.XMLSchema10, records: dict[str, AuditRecord], name: str) -> None:
    text = render_junit(records[name])
    assert [error.reason for error in junit.iter_errors(text)] == []
    assert not junit.is_valid(text.replace("<testsuite ", "<testsuite odd='1' "))


@pytest.mark.parametrize("name", ["example", "hostile", "empty", "broken"])
def test_cyclonedx(records: dict[str, AuditRecord], name: str) -> None:
    text = render_cyclonedx(records[name])
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace("machine-learning-model", "model")) is not None
    assert render_cyclonedx(records[name]) == text


def bom(record: AuditRecord) -> dict[str, Any]:
    return json.loads(render_cyclonedx(record))


def test_the_bom_holds_the_model_card_of_every_variant(record: AuditRecord) -> None:
    document = bom(record)
    models = [
        document["metadata"]["component"],
        *(part for part in document["components"] if part["type"] == "machine-learning-model"),
    ]
    assert len(models) == len(record.variants)
    for model, variant in zip(models, record.variants, strict=True):
        card = model["modelCard"]
        metrics = [metric for result in variant.results for metric in result.metrics]
        values = {(m["slice"].split(":")[0], m["type"]): m for m in card["quantitativeAnalysis"]["performanceMetrics"]}
        accuracy = next(metric for metric in metrics if metric.name == "accuracy")
        told = values["performance", "accuracy"]
        assert float(told["value"]) == pytest.approx(accuracy.value)
        assert float(told["confidenceInterval"]["lowerBound"]) == pytest.approx(accuracy.ci_low, rel=1e-5)
        assert card["modelParameters"]["datasets"] == [{"ref": "data"}]
    assert models[0]["modelCard"]["considerations"]["performanceTradeoffs"] == []
    assert any("robust accuracy" in text for text in models[1]["modelCard"]["considerations"]["performanceTradeoffs"])
    references = [part["bom-ref"] for part in document["components"]] + ["model"]
    assert len(references) == len(set(references))
    assert {dep["ref"] for dep in document["dependencies"]} <= set(references)


def test_the_bom_lists_the_files_that_were_scanned(record: AuditRecord) -> None:
    table = Table(
        id="files",
        title="Files",
        columns=("file", "role", "format", "verdict", "bytes", "sha256", "reasons"),
        rows=(("m.safetensors", "weights", "safetensors", "clean", 8, "ab" * 32, ""), ("b", "", "", "", 0, "?", "")),
    )
    base = record.variants[0]
    scanned = base.results[0].model_copy(update={"check": "model_file", "id": "model_file", "figures": (table,)})
    variant = base.model_copy(update={"results": (*base.results, scanned)})
    document = bom(record.model_copy(update={"variants": (variant,)}))
    files = [part for part in document["components"] if part["type"] == "file"]
    assert [file["name"] for file in files] == ["m.safetensors", "b"]
    assert files[0]["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert files[1]["hashes"] == []
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None


def test_the_model_card_is_read_by_the_hubs_own_library(
    records: dict[str, AuditRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    for name in ("example", "hostile", "broken"):
        record = records[name]
        card = hub.ModelCard(render_model_card(record), ignore_metadata_errors=False)
        results = card.data.eval_results
        base = record.variants[0]
        finite = [m for r in base.results for m in r.metrics if m.value is not None and abs(m.value) < float("inf")]
        assert sum(1 for _ in results) == len(finite)
        assert {result.dataset_revision for result in results} == {record.data.sha256} or name == "hostile"


def test_the_model_card_tells_gates_risks_and_limits(record: AuditRecord) -> None:
    card = render_model_card(record)
    metadata, body = card.split("---\n")[1:3]
    [entry] = yaml.safe_load(metadata)["model-index"]
    assert entry["name"] == record.name
    assert {result["task"]["type"] for result in entry["results"]} == {"image-classification"}
    for heading in ("What was required", "What was measured", "Known risks", "What was not examined"):
        assert f"### {heading}" in body
    assert "linf.robust\\_accuracy &gt;= 0.40 | Failed" in body
    assert record.model.sha256 in body


def test_the_model_card_leaves_nothing_to_act_on(hostile_record: AuditRecord) -> None:
    body = render_model_card(hostile_record).split("\n---\n", 1)[1]
    assert "<" not in body
    assert "http://" not in body
    assert not any(line.startswith("#") and "###" not in line[:4] and line[:3] != "## " for line in body.splitlines())
