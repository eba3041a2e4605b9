"""Verification: an untouched audit holds; each kind of tampering is caught and named."""

import contextlib
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.audit.checks.base import Claim
from auditorch.audit.errors import AuditError
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec
from auditorch.audit.verify import verify
from auditorch.reports.render import render
from auditorch.reports.schema import read_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from .runs import write_project

SPEC = """version: 1
model: {factory: model.py:build, weights: model.safetensors}
data: {source: test.npz}
checks:
  - performance
  - evasion: {id: fgsm, attack: fgsm, norm: linf, eps: 0.05}
variants:
  - regularization: {train: test.npz, epochs: 1, mixup: 0}
gates:
  - performance.accuracy >= 0.5
  - expression: fgsm.robust_accuracy >= 0.9
    confidence: none
"""


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    (folder / "audit.yaml").write_text(SPEC)
    run_audit(load_spec(folder / "audit.yaml"), folder / "out")
    return folder


@pytest.fixture
def folder(audited: Path, tmp_path: Path) -> Path:
    shutil.copytree(audited, tmp_path / "project")
    return tmp_path / "project"


def failed(folder: Path, **options: Any) -> list[Claim]:
    return [claim for claim in verify(folder / "out", **options) if not claim.ok]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], *, digest: bool = True) -> None:
    """Changes the record as a careful forger would, digest and report included."""
    path = folder / "out/audit.json"
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))
    if digest:
        (folder / "out/audit.json.sha256").write_text(f"{sha256(path.read_bytes()).hexdigest()}  audit.json\n")
        render(read_record(path), folder / "out", ("html",))


def test_an_untouched_audit_holds(folder: Path) -> None:
    claims = list(verify(folder / "out"))
    assert [claim for claim in claims if not claim.ok] == []
    said = " ".join(claim.what for claim in claims)
    for part in ("the model is the audited one", "base:fgsm:", "regularization:performance:", "gate fgsm.robust"):
        assert part in said


def test_every_byte_of_the_record_is_guarded(folder: Path) -> None:
    path = folder / "out/audit.json"
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with contextlib.suppress(AuditError):  # raised where it is no longer a record
            assert failed(folder, with_model=False), f"byte {at} was changed unseen"


def test_every_byte_of_the_evidence_is_guarded(folder: Path) -> None:
    files = sorted((folder / "out/evidence").rglob("*.safetensors"))
    assert len(files) >= 5
    for path in files:
        content = path.read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            name = path.relative_to(folder / "out").as_posix()
            assert [claim.what for claim in failed(folder, with_model=False)] == [f"{name} is the recorded file"]
        path.write_bytes(content)
    files[0].unlink()
    assert failed(folder, with_model=False)[0].detail == "missing or changed since the audit"


def test_evidence_replaced_together_with_its_hash_contradicts_the_model(folder: Path) -> None:
    path = folder / "out/evidence/base/performance.safetensors"
    tensors = load_file(path)
    tensors["logits"] = torch.roll(tensors["logits"], 1, dims=1)
    save_file(tensors, path)

    def change(record: dict[str, Any]) -> None:
        evidence = record["variants"][0]["results"][0]["evidence"]
        assert evidence[0]["path"] == "evidence/base/performance.safetensors"
        evidence[0]["sha256"] = sha256(path.read_bytes()).hexdigest()

    rewrite(folder, change)
    assert [claim.what for claim in failed(folder, with_model=False)] == ["paired changes follow from the evidence"]
    assert "base:performance: the model predicts as recorded" in [claim.what for claim in failed(folder)]


def improve_accuracy(record: dict[str, Any]) -> None:
    metric = next(m for m in record["variants"][0]["results"][0]["metrics"] if m["name"] == "accuracy")
    metric["value"], metric["ci_low"], metric["ci_high"] = 0.25, 0.2, 0.3


def value_outside(record: dict[str, Any]) -> None:
    next(m for m in record["variants"][1]["results"][0]["metrics"] if m["name"] == "log_loss")["value"] = -5.0


def pass_gate(record: dict[str, Any]) -> None:
    record["gates"][1]["verdict"] = "pass" if record["gates"][1]["verdict"] == "fail" else "fail"


def drop_gate(record: dict[str, Any]) -> None:
    del record["gates"][1]


def soften_gate(record: dict[str, Any]) -> None:
    record["spec"]["gates"][0] = "performance.accuracy >= 0.1"


def other_verdict(record: dict[str, Any]) -> None:
    record["verdict"] = "inconclusive"


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (improve_accuracy, "gate performance.accuracy >= 0.5: the verdict follows from the metric"),
        (value_outside, "regularization:performance: each value lies in its interval"),
        (pass_gate, "gate fgsm.robust_accuracy >= 0.9: the verdict follows from the metric"),
        (drop_gate, "gate fgsm.robust_accuracy >= 0.9: the verdict follows from the metric"),
        (soften_gate, "the spec is the one that was hashed"),
        (other_verdict, "the verdict follows from the gates"),
    ],
)
def test_a_record_that_contradicts_itself_is_caught(
    folder: Path, change: Callable[[dict[str, Any]], None], claim: str
) -> None:
    rewrite(folder, change)
    assert claim in [one.what for one in failed(folder, with_model=False)]


def test_a_changed_value_that_agrees_with_itself_contradicts_the_evidence(folder: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        metric = next(m for m in record["variants"][0]["results"][0]["metrics"] if m["name"] == "brier")
        metric["value"] = metric["ci_low"]

    rewrite(folder, change)
    assert failed(folder, with_model=False) == []
    assert [claim.what for claim in failed(folder)] == ["base:performance: brier follows from the recorded scores"]


def test_another_model_or_other_data_are_caught(folder: Path) -> None:
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    save_file({key: value + 0.5 for key, value in load_file(weights).items()}, weights)
    assert [claim.what for claim in failed(folder)] == ["the model is the audited one"]
    weights.write_bytes(kept)
    write_project(folder / "other", n=44)
    shutil.copy(folder / "other/test.npz", folder / "test.npz")
    assert "the data are the audited ones" in [claim.what for claim in failed(folder)]


def test_a_folder_that_moved_alone_needs_the_specs_place(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "out", tmp_path / "moved")
    [claim] = [claim for claim in verify(tmp_path / "moved") if not claim.ok]
    assert claim.what == "model and data can be reloaded"
    assert [claim for claim in verify(tmp_path / "moved", base=folder) if not claim.ok] == []


def test_no_record_is_a_clean_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot read"):
        list(verify(tmp_path))


def test_a_page_that_says_something_else_is_caught(folder: Path) -> None:
    page = folder / "out/report.html"
    page.write_text(page.read_text().replace("Fast gradient", "Slow gradient").replace("performance", "perfection"))
    assert [claim.what for claim in failed(folder, with_model=False)] == ["report.html is what the record renders to"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_change_of_any_byte_of_record_or_evidence_is_caught(audited: Path, data: st.DataObject) -> None:
    out = audited / "out"
    files = [out / "audit.json", out / "audit.json.sha256", *sorted(out.glob("evidence/**/*.safetensors"))]
    file = data.draw(st.sampled_from(files))
    before = file.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    after = data.draw(
        st.one_of(
            st.integers(1, 255).map(lambda flip: before[:place] + bytes([before[place] ^ flip]) + before[place + 1 :]),
            st.binary(min_size=1, max_size=9).map(lambda more: before[:place] + more + before[place:]),
            st.just(before[:place] + before[place + 1 :]),
            st.just(before[:place]),
        )
    )
    try:
        file.write_bytes(after)
        with contextlib.suppress(AuditError):  # a record that cannot be read is caught, too
            assert any(not claim.ok for claim in verify(out, with_model=False))
    finally:
        file.write_bytes(before)
