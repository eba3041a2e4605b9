"""Reading and writing records: what round-trips, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from auditorch.reports.errors import RecordError, ReportError
from auditorch.reports.record import AuditRecord
from auditorch.reports.schema import read_record, record_schema, write_record
from jsonschema import Draft202012Validator

from .example import empty

OLD = Path(__file__).parent / "data/record-v1.json"


def test_record_round_trips(record: AuditRecord, tmp_path: Path) -> None:
    path = write_record(record, tmp_path / "audit.json")
    assert read_record(path).model_dump_json() == record.model_dump_json()
    assert read_record(tmp_path).name == record.name
    assert [entry.name for entry in tmp_path.iterdir()] == ["audit.json"]


def test_infinities_and_nan_survive(record: AuditRecord, tmp_path: Path) -> None:
    write_record(record, tmp_path / "audit.json")
    metrics = read_record(tmp_path).variants[0].results[3].metrics
    assert str(metrics[2].value) == "nan"
    assert metrics[3].value == float("inf")


def test_schema_accepts_records_and_refuses_others(record: AuditRecord, hostile_record: AuditRecord) -> None:
    schema = record_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for good in (record, hostile_record, empty()):
        assert validator.is_valid(json.loads(good.model_dump_json()))
    document = json.loads(record.model_dump_json())
    assert not validator.is_valid({**document, "extra": 1})
    assert not validator.is_valid({**document, "schema_version": 1})
    assert not validator.is_valid({**document, "seed": "zero"})


def test_newer_schema_is_refused_with_advice(tmp_path: Path) -> None:
    document = {**json.loads(empty().model_dump_json()), "schema_version": 3, "new_field": True}
    (tmp_path / "audit.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=r"schema version 3; this auditorch reads up to 2.*pip install --upgrade"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected an object, found list"),
        ("{}", "schema_version is None"),
        ('{"schema_version": "1"}', "schema_version is '1'"),
        ('{"schema_version": true}', "schema_version is True"),
        ('{"schema_version": 0}', "schema_version: "),
        ('{"schema_version": 1}', r"name: Field required.*and \d+ more"),
        ("\x80", "is not JSON"),
        ('{"schema_version": 2, "n": -1' + "0" * 400 + "}", "a whole number of 402 digits; at most 308"),
        ("1" * 5000, "is not JSON"),
    ],
)
def test_malformed_records_are_refused_clearly(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordError, match=problem):
        read_record(path)


def test_wrong_values_name_their_place(record: AuditRecord, tmp_path: Path) -> None:
    document = json.loads(record.model_dump_json())
    document["variants"][0]["results"][1]["status"] = "fine"
    (tmp_path / "audit.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=r"variants\.0\.results\.1\.status"):
        read_record(tmp_path)


def test_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot read .*audit\.json: No such file"):
        read_record(tmp_path)
    with pytest.raises(RecordError, match="cannot read"):
        read_record("nul\0byte")


def test_failed_write_leaves_no_parts(tmp_path: Path) -> None:
    (tmp_path / "audit.json").mkdir()
    with pytest.raises(ReportError, match="cannot write"):
        write_record(empty(), tmp_path / "audit.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["audit.json"]


def test_a_record_of_version_1_is_migrated() -> None:
    raw = json.loads(OLD.read_text())
    assert raw["schema_version"] == 1
    record = read_record(OLD)
    assert record.schema_version == 2
    assert [(gate.check, gate.operator, gate.unit) for gate in record.gates] == [
        ("performance", ">=", "rate"),
        ("linf", ">=", "rate"),
        ("linf", ">=", "rate"),
    ]
    assert [gate.expression for gate in record.gates] == [gate["expression"] for gate in raw["gates"]]
    metrics = [len(result.metrics) for variant in record.variants for result in variant.results]
    assert metrics == [len(result["metrics"]) for variant in raw["variants"] for result in variant["results"]]
    assert Draft202012Validator(record_schema()).is_valid(json.loads(record.model_dump_json()))


@pytest.mark.parametrize("gates", [7, [7], [{}], [{"expression": 3}], [{"expression": "a.b >= 1", "variant": []}]])
def test_a_malformed_record_of_version_1_is_refused_clearly(gates: object, tmp_path: Path) -> None:
    document = {**json.loads(OLD.read_text()), "gates": gates, "variants": {"not": "a list"}}
    (tmp_path / "audit.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match="is not an audit record"):
        read_record(tmp_path)
