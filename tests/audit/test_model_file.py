"""The check of the model's files: what is clean, what is not, and that a change is noticed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from auditorch.audit.checks.base import ModelFiles
from auditorch.audit.checks.model_file import ModelFile
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec
from auditorch.audit.verify import verify
from auditorch.reports.record import Result, Table
from safetensors.torch import save_file

from .fakes import FakeContext, toy_samples, toy_target
from .runs import write_project


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("true",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text("def build(): ...\n")
    save_file({"w": torch.zeros(2)}, tmp_path / "good.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "plain.pt")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "odd.bin").write_bytes(b"GGUF" + bytes(40))
    return tmp_path


def run(folder: Path, files: ModelFiles) -> Result:
    return ModelFile().run(toy_target(), toy_samples(4), FakeContext(folder, models=files))


def verdicts(result: Result) -> dict[str, str]:
    [table] = [figure for figure in result.figures if isinstance(figure, Table)]
    return {str(row[0]): str(row[3]) for row in table.rows}


def counts(result: Result) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in result.metrics}


def test_every_file_gets_its_verdict(folder: Path) -> None:
    files = ModelFiles(code=("model.py",), weights=("good.safetensors", "plain.pt", "evil.bin", "odd.bin"))
    result = run(folder, files)
    assert verdicts(result) == {
        "model.py": "code",
        "good.safetensors": "clean",
        "plain.pt": "clean",
        "evil.bin": "dangerous",
        "odd.bin": "unknown",
    }
    assert counts(result) == {"files": 5, "dangerous_files": 1, "unknown_files": 1, "code_files": 1}
    assert [(f.severity, f.detail.split(" ")[0]) for f in result.findings] == [
        ("low", "plain.pt"),
        ("critical", "evil.bin"),
        ("medium", "odd.bin"),
    ]
    assert result.summary.startswith("No: 1 of 5 files would run code")


def test_a_clean_model_is_told_to_be_so(folder: Path) -> None:
    result = run(folder, ModelFiles(code=("model.py",), weights=("good.safetensors",)))
    assert result.findings == ()
    assert result.summary.startswith("None of the 2 files carries code")
    assert "model.py" in result.summary


def test_a_folder_is_scanned_file_by_file(folder: Path) -> None:
    result = run(folder, ModelFiles(weights=(".",)))
    assert set(verdicts(result)) >= {"./evil.bin", "./model.py", "./good.safetensors"}
    assert verdicts(result)["./model.py"] == "code"


def test_trust_is_a_finding_and_what_is_elsewhere_a_warning(folder: Path) -> None:
    result = run(
        folder, ModelFiles(weights=("good.safetensors",), elsewhere=("https://models.example/v1",), trusted=True)
    )
    assert [finding.severity for finding in result.findings] == ["high"]
    assert result.warnings == ("https://models.example/v1 is not a local file: it was not scanned here.",)


def test_verify_notices_a_changed_a_new_and_a_missing_file(folder: Path) -> None:
    context = FakeContext(folder, models=ModelFiles(weights=("good.safetensors", "plain.pt")))
    result = ModelFile().run(toy_target(), toy_samples(4), context)

    def failed(files: ModelFiles) -> list[str]:
        again = FakeContext(folder, models=files)
        return [c.what for c in ModelFile().verify(toy_target(), toy_samples(4), result, again) if not c.ok]

    assert failed(context.models) == []
    assert failed(ModelFiles(weights=("good.safetensors",))) == [
        "no file of the model is missing",
        "the counts follow from the files",
    ]
    assert "odd.bin is the file that was scanned, with the same outcome" in failed(
        ModelFiles(weights=("good.safetensors", "plain.pt", "odd.bin"))
    )
    (folder / "plain.pt").write_bytes(pickle.dumps(Evil()))
    assert failed(context.models)[0] == "plain.pt is the file that was scanned, with the same outcome"


def test_in_an_audit_it_is_gated_and_verified(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    text = path.read_text().replace("[performance]", "[performance, model_file]")
    path.write_text(text + "  - model_file.dangerous_files == 0\n")
    record = run_audit(load_spec(path), tmp_path / "out")
    result = record.variants[0].result("model_file")
    assert result is not None
    assert verdicts(result) == {"model.py": "code", "model.safetensors": "clean"}
    assert record.verdict == "pass"
    assert [claim.what for claim in verify(tmp_path / "out") if not claim.ok] == []
    assert result.metrics[0].value == 2
