"""Variants beside the base: paired tests, Holm's correction, and gains that are none."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from auditorch.audit import registry
from auditorch.audit.changes import holm
from auditorch.audit.checks.base import Context
from auditorch.audit.runner import run_audit
from auditorch.audit.samples import Samples
from auditorch.audit.spec import load_spec
from auditorch.audit.target import Target
from auditorch.audit.variants.base import Built, Variant
from auditorch.audit.verify import verify
from auditorch.reports.comparison import metric_rows, own_rows
from auditorch.reports.findings import collect
from auditorch.reports.record import AuditRecord, Metric, VariantRecord
from auditorch.reports.sarif import render_sarif
from torch import Tensor, nn

from .runs import write_project


class Saturating(nn.Module):
    """The same decisions, but logits so large that the gradient of cross-entropy underflows to zero."""

    def __init__(self, module: nn.Module, scale: float) -> None:
        super().__init__()
        self.module = module
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) * self.scale


class Masked(Variant):
    """Hides the gradient and changes nothing."""

    name: ClassVar[str] = "masked"
    title: ClassVar[str] = "Masked"

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        return Built(self.wrap(target.module), "Masked.")

    def wrap(self, module: nn.Module) -> nn.Module:
        return Saturating(module, 1e5)


class Shrunk(Variant):
    """Evidence for class 0 is halved: some of its samples get lost, those of the others get safer."""

    name: ClassVar[str] = "shrunk"
    title: ClassVar[str] = "Shrunk"
    share: float = 0.5

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        state = {key: value.clone() for key, value in target.module.state_dict().items()}
        weight = next(key for key in state if key.endswith("weight"))
        state[weight][0] *= self.share
        module = self.wrap(target.module)
        module.load_state_dict(state)
        return Built(module, "Shrunk.")

    def wrap(self, module: nn.Module) -> nn.Module:
        return copy.deepcopy(module)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


SPEC = """\
version: 1
name: toy
model: {factory: model.py:build, weights: model.safetensors}
data: {source: test.npz}
checks:
  - performance
  - evasion: {id: linf, norm: linf, eps: 0.1, attack: pgd, steps: 5, random_start: false, loss: ce, diagnostics: false}
variants: [masked, shrunk]
"""


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    value: type[Variant]

    def load(self) -> type[Variant]:
        return self.value


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    entries = [Entry("masked", Masked), Entry("shrunk", Shrunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_extensions", lambda kind: entries if kind == "defenses" else [])
        yield


@pytest.fixture(scope="module")
def record(folder: Path) -> AuditRecord:
    spec = write_project(folder)
    spec.write_text(SPEC)
    return run_audit(load_spec(spec), folder / "out")


def of(record: AuditRecord, variant: str) -> VariantRecord:
    found = record.variant(variant)
    assert found is not None
    return found


def test_masking_that_hides_the_gradient_is_told_from_robustness(record: AuditRecord) -> None:
    masked = of(record, "masked")
    result = masked.result("linf")
    base = of(record, "base").result("linf")
    assert result is not None
    assert base is not None
    own, before = result.metric("robust_accuracy"), base.metric("robust_accuracy")
    assert own is not None
    assert before is not None
    assert own.value == 1.0, "the attack must be blind here"
    assert before.value == 0.0, "and must break the base"
    titles = [finding.title for finding in masked.findings]
    assert any("missed" in title for title in titles)
    assert any("vanishes" in title for title in titles)
    transfer = next(metric for metric in masked.metrics if metric.name == "transfer_robust_accuracy_linf")
    assert transfer.value == 0.0
    assert transfer.n == 40


def test_an_honest_variant_raises_no_alarm(record: AuditRecord) -> None:
    assert of(record, "shrunk").findings == ()


def test_changes_are_paired_with_the_base(record: AuditRecord) -> None:
    change = next(one for one in of(record, "shrunk").changes if (one.check, one.metric) == ("performance", "accuracy"))
    before, after = (of(record, name).result("performance") for name in ("base", "shrunk"))
    assert before is not None
    assert after is not None
    accuracies = [result.metric("accuracy") for result in (before, after)]
    values = [metric.value for metric in accuracies if metric is not None and metric.value is not None]
    assert change.difference == pytest.approx(values[1] - values[0])
    assert (change.gained, change.lost, change.n) == (0, round(40 * (values[0] - values[1])), 40)
    assert change.lost == 10, "a quarter of the samples are of class 0"
    assert change.p == pytest.approx(2 * 0.5**10)  # ten discordant pairs, all in one direction
    assert change.p_adjusted is not None
    assert change.p is not None
    assert change.p_adjusted >= change.p


def test_the_base_has_no_changes(record: AuditRecord) -> None:
    assert of(record, "base").changes == ()


def test_rows_say_worse_only_beyond_chance(record: AuditRecord) -> None:
    variants = [of(record, name) for name in ("base", "masked", "shrunk")]
    row = next(row for row in metric_rows("performance", variants) if row.name == "accuracy")
    assert [cell.change for cell in row.cells] == ["", "", "worse"]
    assert row.cells[2].detail.startswith("−25.0 points (")
    assert row.cells[1].detail.startswith("+0.0 points (")


def test_own_metrics_are_rows(record: AuditRecord) -> None:
    names = [row.name for row in own_rows([of(record, name) for name in ("base", "masked")])]
    assert "transfer_robust_accuracy_linf" in names


def test_times_are_shown_and_not_judged() -> None:
    def timed(name: str, value: float) -> VariantRecord:
        metric = Metric(name="latency_ms", value=value, ci_low=value, ci_high=value, unit="ms", higher_is_better=False)
        return VariantRecord(id=name, kind=name, metrics=(metric, metric.model_copy(update={"name": "x", "unit": ""})))

    rows = {row.name: row for row in own_rows([timed("base", 1.0), timed("slow", 2.0)])}
    assert rows["latency_ms"].cells[1].change == ""
    assert rows["x"].cells[1].change == "worse"


def test_findings_of_a_variant_reach_every_format(record: AuditRecord) -> None:
    own = [entry for entry in collect(record) if entry.check == "variant"]
    assert {entry.variants for entry in own} == {("masked",)}
    assert "vanishes when the attack fits" in render_sarif(record)


def test_holm_by_hand() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "nan": float("nan")})
    assert adjusted["a"] == pytest.approx(0.03)
    assert adjusted["c"] == pytest.approx(0.06)
    assert adjusted["b"] == pytest.approx(0.06)  # never below a smaller p-value's
    assert math.isnan(adjusted["nan"])


def test_verify_recomputes_changes_and_gains(record: AuditRecord, folder: Path, tmp_path: Path) -> None:
    assert record.variants[2].changes
    claims = list(verify(folder / "out"))
    assert all(claim.ok for claim in claims if "paired changes" in claim.what or "transfers" in claim.what)
    assert sum("transfers from the base" in claim.what for claim in claims) == 2
    forged = json.loads((folder / "out" / "audit.json").read_text())
    forged["variants"][2]["changes"][0]["difference"] = 0.2
    copied = shutil.copytree(folder / "out", tmp_path / "out")
    (copied / "audit.json").write_text(json.dumps(forged))
    failed = [claim.what for claim in verify(copied, with_model=False) if not claim.ok]
    assert "paired changes follow from the evidence" in failed
