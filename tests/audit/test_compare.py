"""Two audits side by side: paired where the samples are the same, corrected for many metrics, told in every form."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from auditorch.audit.cli import main
from auditorch.audit.compare import compare
from auditorch.audit.paired import mcnemar_exact
from auditorch.reports.comparison_page import render_comparison_html
from auditorch.reports.differences import Comparison, Difference, render_comparison_markdown
from auditorch.reports.record import AuditRecord, Metric
from auditorch.reports.schema import read_record
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from ..reports.pages import read_page
from .runs import write_project


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same spec run twice: as it was in ``base``, and in ``new`` with a model that favours one class."""
    folder = tmp_path_factory.mktemp("project")
    spec = write_project(folder, n=120)
    assert call("run", str(spec), "-o", str(folder / "base"), "--quiet").exit_code == 0
    weights = load_file(folder / "model.safetensors")
    bias = next(key for key in weights if key.endswith("bias"))
    weights[bias][0] += 3
    save_file(weights, folder / "model.safetensors")
    assert call("run", str(spec), "-o", str(folder / "new"), "--quiet").exit_code in (0, 1)
    return folder


@pytest.fixture
def record(audits: Path) -> AuditRecord:
    return read_record(audits / "base")


def of(comparison: Comparison, address: str) -> Difference:
    return next(one for one in comparison.differences if one.address == address)


def changed(record: AuditRecord, name: str, value: float, low: float, high: float) -> AuditRecord:
    content = record.model_dump(mode="json")
    for metric in content["variants"][0]["results"][0]["metrics"]:
        if metric["name"] == name:
            metric["value"], metric["ci_low"], metric["ci_high"] = value, low, high
    return AuditRecord.model_validate(content)


def test_the_same_samples_are_compared_one_by_one(audits: Path) -> None:
    before, after = read_record(audits / "base"), read_record(audits / "new")
    found = of(compare(before, after, (audits / "base", audits / "new")), "performance.accuracy")
    assert found.test is not None
    assert (found.test.method, found.test.n) == ("McNemar, exact", 120)
    assert found.test.difference == pytest.approx(value(found.after) - value(found.before))
    lost = round(-120 * found.test.difference)
    assert lost > 5  # the bias only turns samples towards one class, so none is gained
    assert found.test.p >= mcnemar_exact(0, lost)
    apart = of(compare(before, after), "performance.accuracy")
    assert apart.test is not None
    assert apart.test.method == "intervals"
    assert found.test.high - found.test.low < apart.test.high - apart.test.low


def value(metric: Metric | None) -> float:
    assert metric is not None
    assert metric.value is not None
    return metric.value


def test_other_data_are_not_paired(audits: Path) -> None:
    before, after = read_record(audits / "base"), read_record(audits / "new")
    other = after.model_copy(update={"data": after.data.model_copy(update={"sha256": "0" * 64})})
    comparison = compare(before, other, (audits / "base", audits / "new"))
    assert not comparison.same_data
    assert {one.test.method for one in comparison.differences if one.test} == {"intervals"}
    assert "different data" in comparison.notes[0]


def test_regressions_are_told_from_noise(record: AuditRecord) -> None:
    before = changed(record, "accuracy", 0.90, 0.88, 0.92)
    cases = {(0.80, 0.78, 0.82): "regressed", (0.89, 0.87, 0.91): "unclear", (0.97, 0.96, 0.98): "improved"}
    for numbers, kind in cases.items():
        comparison = compare(before, changed(record, "accuracy", *numbers))
        one = of(comparison, "performance.accuracy")
        assert one.kind == kind
        assert comparison.regressed == (kind == "regressed")
        assert {d.kind for d in comparison.differences if d is not one} <= {"same"}
    lower = compare(changed(record, "log_loss", 0.2, 0.19, 0.21), changed(record, "log_loss", 0.5, 0.49, 0.51))
    assert of(lower, "performance.log_loss").kind == "regressed"


def test_p_values_are_corrected_for_all_metrics(record: AuditRecord) -> None:
    """A difference of 2.5 standard errors is beyond chance alone, not as one of many metrics."""
    before, after = (changed(record, "accuracy", v, v - 0.0277, v + 0.0277) for v in (0.85, 0.80))
    one = of(compare(before, after), "performance.accuracy")
    assert one.test is not None
    assert one.kind == "unclear"
    tested = sum(d.test is not None for d in compare(before, after).differences)
    assert tested > 5
    assert one.test.alone == pytest.approx(0.0124, rel=0.02)
    assert one.test.p == pytest.approx(one.test.alone * tested)
    assert of(compare(before, after, alpha=0.5), "performance.accuracy").kind == "regressed"


def test_what_is_gone_or_new_is_said(record: AuditRecord) -> None:
    base = record.variants[0]
    fewer = base.results[0].model_copy(update={"metrics": base.results[0].metrics[1:]})
    without = record.model_copy(update={"variants": (base.model_copy(update={"results": (fewer,)}),)})
    assert of(compare(record, without), "performance.accuracy").kind == "gone"
    assert compare(record, without).regressed
    assert of(compare(without, record), "performance.accuracy").kind == "new"
    assert not compare(without, record).regressed


def test_times_are_neither_better_nor_worse(record: AuditRecord) -> None:
    def timed(seconds: float) -> AuditRecord:
        own = (Metric(name="latency", value=seconds, unit="ms", higher_is_better=False),)
        return record.model_copy(update={"variants": (record.variants[0].model_copy(update={"metrics": own}),)})

    comparison = compare(timed(1.0), timed(2.0))
    assert of(comparison, "base:variant.latency").kind == "changed"
    assert not comparison.regressed


def test_rounding_of_a_number_without_interval_is_no_regression(record: AuditRecord) -> None:
    def spent(epsilon: float) -> AuditRecord:
        own = (Metric(name="epsilon", value=epsilon, higher_is_better=False),)
        return record.model_copy(update={"variants": (record.variants[0].model_copy(update={"metrics": own}),)})

    assert not compare(spent(7.98), spent(7.9801)).regressed
    assert of(compare(spent(7.98), spent(8.1)), "base:variant.epsilon").kind == "regressed"


def test_on_the_command_line(audits: Path, tmp_path: Path) -> None:
    base, new = str(audits / "base"), str(audits / "new")
    done = call("compare", base, new)
    assert done.exit_code == 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith("performance.accuracy ")]
    assert line.endswith("regressed")
    assert "McNemar, exact, n = 120, p" in line
    assert "gate performance.accuracy >= 0.8: pass before, fail now" in done.stdout
    assert call("compare", base, new, "--fail-on-regression").exit_code == 1
    assert call("compare", base, base, "--fail-on-regression").exit_code == 0
    moved = tmp_path / "baseline.json"
    shutil.copy(audits / "base/audit.json", moved)
    alone = call("compare", str(moved), new, "--markdown", str(tmp_path / "c.md"), "--html", str(tmp_path / "c.html"))
    assert alone.exit_code == 0
    assert "intervals" in alone.stdout
    assert (tmp_path / "c.md").read_text().startswith("## ❌ toy against its baseline")
    assert read_page((tmp_path / "c.html").read_text())
    assert call("compare", base, str(tmp_path / "absent")).exit_code == 2


def test_page_and_comment_tell_every_difference(audits: Path) -> None:
    comparison = compare(read_record(audits / "base"), read_record(audits / "new"), (audits / "base", audits / "new"))
    tree = read_page(render_comparison_html(comparison))
    texts = [row.text() for row in tree.all("tr")]
    comment = render_comparison_markdown(comparison)
    for one in comparison.differences:
        assert sum(one.address in text and one.label in text for text in texts) == 1
        assert (one.address.replace("_", "\\_") in comment) == (one.kind != "same")
    ids = [element.attributes["id"] for element in tree.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = [e.attributes["href"] for e in tree.all("a")]
    assert {link[1:] for link in links} <= set(ids)


def test_names_cannot_act(record: AuditRecord) -> None:
    payload = "<img src=x onerror=alert(1)>|`[x](javascript:alert(1))"
    named = record.model_copy(update={"name": payload})
    metric = record.variants[0].results[0].metrics[0].model_copy(update={"name": payload, "label": payload})
    result = record.variants[0].results[0].model_copy(update={"metrics": (metric,)})
    other = named.model_copy(update={"variants": (record.variants[0].model_copy(update={"results": (result,)}),)})
    comparison = compare(record, other)
    tree = read_page(render_comparison_html(comparison))
    assert not tree.all("img")
    comment = render_comparison_markdown(comparison)
    assert "<img" not in comment
    assert not re.search(r"(?<!\\)\[x", comment)
