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
    assert not validator.is_valid({**document, "schema_version": 2})
    assert not validator.is_valid({**document, "seed": "zero"})


def test_newer_schema_is_refused_with_advice(tmp_path: Path) -> None:
    document = {**json.loads(empty().model_dump_json()), "schema_version": 2, "new_field": True}
    (tmp_path / "audit.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=r"schema version 2; this auditorch reads up to 1.*pip install --upgrade"):
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
