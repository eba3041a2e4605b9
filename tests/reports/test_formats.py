"""JUnit, SARIF and Markdown: what pipelines and pull requests see."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from auditorch.reports.errors import ReportError
from auditorch.reports.escaping import visible
from auditorch.reports.junit import render_junit
from auditorch.reports.markdown import render_markdown, text
from auditorch.reports.record import AuditRecord, VariantRecord
from auditorch.reports.render import render
from auditorch.reports.sarif import render_sarif

from .example import HOSTILE, empty


def sarif_run(record: AuditRecord) -> dict[str, Any]:
    log = json.loads(render_sarif(record))
    assert log["version"] == "2.1.0"
    [run] = log["runs"]
    return run


def cells(row: str) -> list[str]:
    return re.split(r"(?<!\\)\|", row)[1:-1]


def test_junit_counts_gates_and_what_did_not_finish(record: AuditRecord) -> None:
    root = ElementTree.fromstring(render_junit(record))
    [suite] = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [*(gate.expression for gate in record.gates), "l2"]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "2", "2")
    assert len(suite.findall("testcase/failure")) == 2
    assert len(suite.findall("testcase/error")) == 2
    assert [failure.get("type") for failure in suite.iter("failure")] == ["fail", "inconclusive"]


def test_junit_failure_tells_value_interval_and_reason(record: AuditRecord) -> None:
    failure = next(ElementTree.fromstring(render_junit(record)).iter("failure"))
    assert failure.get("message") == record.gates[1].reason
    assert "6.2 % (4.9–7.9), n = 1,000" in (failure.text or "")


def test_junit_of_a_broken_variant_is_an_error() -> None:
    broken = VariantRecord(id="dp", kind="dp_sgd", status="error", error="out of memory")
    record = empty().model_copy(update={"variants": (broken,)})
    [error] = ElementTree.fromstring(render_junit(record)).iter("error")
    assert error.get("message") == "out of memory"


def test_junit_holds_any_text(hostile_record: AuditRecord) -> None:
    root = ElementTree.fromstring(render_junit(hostile_record))
    names = [case.get("name") for case in root.iter("testcase")]
    assert set(names) <= {visible(payload) for payload in HOSTILE}


def test_junit_of_an_empty_audit_has_no_cases() -> None:
    root = ElementTree.fromstring(render_junit(empty()))
    assert root.get("tests") == "0"
    assert not list(root.iter("testcase"))


def test_sarif_results_point_at_their_rules(record: AuditRecord) -> None:
    run = sarif_run(record)
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        [location] = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "model.safetensors"


def test_sarif_tells_each_finding_once_with_level_help_and_standards(record: AuditRecord) -> None:
    run = sarif_run(record)
    assert Counter(result["level"] for result in run["results"]) == {"error": 4, "note": 2, "warning": 1}
    [shared] = [result for result in run["results"] if "Shirt" in result["message"]["text"]]
    assert len(shared["locations"][0]["logicalLocations"]) == 5
    rule = run["tool"]["driver"]["rules"][run["results"][0]["ruleIndex"]]
    assert rule["id"] == "evasion/imperceptible-changes-break-the-model"
    assert "Train on adversarial examples" in rule["help"]["text"]
    assert "arXiv:2003.01690" in rule["help"]["text"]
    assert {"security", "OWASP ML01", "MITRE ATLAS AML.T0015"} <= set(rule["properties"]["tags"])
    assert rule["properties"]["security-severity"] == "9.5"


def test_sarif_says_when_the_audit_is_incomplete(record: AuditRecord) -> None:
    [invocation] = sarif_run(record)["invocations"]
    assert not invocation["executionSuccessful"]
    assert "adversarial_training:l2 did not finish" in invocation["toolExecutionNotifications"][0]["message"]["text"]
    assert invocation["endTimeUtc"] == "2026-11-23T14:05:00Z"
    assert sarif_run(empty())["invocations"][0]["executionSuccessful"]


@pytest.mark.parametrize("seconds", [1e12, 2.0**64, 1e308, math.inf, math.nan])
def test_sarif_leaves_out_a_start_that_cannot_be(record: AuditRecord, seconds: float) -> None:
    [invocation] = sarif_run(record)["invocations"]
    [changed] = sarif_run(record.model_copy(update={"seconds": seconds}))["invocations"]
    assert invocation.pop("startTimeUtc") < invocation["endTimeUtc"]
    assert changed == invocation


@pytest.mark.parametrize(("day", "hours"), [(datetime.min, 5), (datetime.max, -5)])
def test_sarif_at_the_ends_of_the_calendar(record: AuditRecord, day: datetime, hours: int) -> None:
    created = day.replace(tzinfo=timezone(timedelta(hours=hours)))
    [invocation] = sarif_run(record.model_copy(update={"created": created}))["invocations"]
    assert invocation["endTimeUtc"].endswith(f"{day:%m-%dT%H:%M:%S}Z")


def test_sarif_rule_ids_do_not_depend_on_numbers(record: AuditRecord) -> None:
    document = record.model_dump(mode="json")
    document["variants"] = document["variants"][:1]
    for finding in document["variants"][0]["results"][1]["findings"]:
        finding["title"] = "20.5 % of 1,000 predictions overturned"
    first = sarif_run(AuditRecord.model_validate(document))["results"][0]["ruleId"]
    assert first == "evasion/of-predictions-overturned"


def test_sarif_names_are_never_schemes_or_roots(record: AuditRecord, hostile_record: AuditRecord) -> None:
    for name in ("javascript:alert(1)", "/etc/passwd", "http://evil.example/x", "C:\\models\\m.pt", "a b?#.pt"):
        model = record.model.model_copy(update={"weights": name})
        uri = sarif_run(record.model_copy(update={"model": model}))["artifacts"][0]["location"]["uri"]
        assert re.fullmatch(r"[A-Za-z0-9_.~%-][A-Za-z0-9_.~%/-]*", uri)
    assert sarif_run(hostile_record)["results"]


def test_markdown_leads_with_the_verdict_and_lists_gates(record: AuditRecord) -> None:
    lines = render_markdown(record).splitlines()
    assert lines[0] == "## ❌ fashion-cnn: Failed"
    rows = [cells(line) for line in lines if line.startswith("| ")][1:5]
    assert [row[0].split()[1] for row in rows] == ["Incomplete", "Failed", "Inconclusive", "Passed"]
    assert "linf.robust\\_accuracy &gt;= 0.40" in rows[1][1]
    assert rows[1][3].strip() == "6.2 % (4.9–7.9)"
    assert any("**critical** Imperceptible changes" in line for line in lines)
    assert any(line.startswith("| linf: robust accuracy | 6.2 % (4.9–7.9) | 64.1 %") for line in lines)


def test_markdown_tables_keep_their_shape(hostile_record: AuditRecord) -> None:
    lines = render_markdown(hostile_record).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    widths = Counter(len(cells(line)) for line in tables)
    assert set(widths) == {6}
    assert len(tables) == 2 + 4 + 2 + sum(line.startswith("| ") for line in tables[8:])


def test_markdown_leaves_nothing_to_act_on(hostile_record: AuditRecord) -> None:
    page = render_markdown(hostile_record)
    bare = page.replace("<details>", "").replace("</details>", "").replace("<summary>", "").replace("</summary>", "")
    assert "<" not in bare
    assert "@maintainers" not in page
    assert "http://" not in page
    assert not re.search(r"(?<!\\)\[", bare)
    assert not re.search(r"(?<!\\)`", bare)
    assert sum(line.startswith("#") for line in page.splitlines()) == 2


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("a|b", "a\\|b"),
        ("a\nb", "a b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("www.evil.example", "www\u200b.evil.example"),
        ("@all", "@\u200ball"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_markdown_escaping(raw: str, escaped: str) -> None:
    assert text(raw) == escaped


def test_render_writes_the_files_asked_for(record: AuditRecord, tmp_path: Path) -> None:
    assert [path.name for path in render(record, tmp_path, ("junit", "sarif", "markdown"))] == [
        "junit.xml", "report.sarif", "summary.md",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junit.xml", "report.sarif", "summary.md"]
    assert {path.name for path in render(empty(), tmp_path)} == {
        "report.html",
        "junit.xml",
        "report.sarif",
        "summary.md",
        "bom.cdx.json",
        "model-card.md",
    }


def test_render_is_deterministic(record: AuditRecord, tmp_path: Path) -> None:
    formats = ("json", "junit", "sarif", "markdown")
    first = [path.read_bytes() for path in render(record, tmp_path, formats)]
    assert [path.read_bytes() for path in render(record, tmp_path, formats)] == first


def test_render_refuses_an_unknown_format_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="unknown report format 'pdf'"):
        render(empty(), tmp_path, ("junit", "pdf"))
    assert not list(tmp_path.iterdir())


def test_render_says_where_it_could_not_write(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"cannot write .*absent.*junit\.xml"):
        render(empty(), tmp_path / "absent", ("junit",))
