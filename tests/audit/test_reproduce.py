"""One check run again: the same numbers from the same audit, and a difference where something changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from auditorch.audit.cli import main
from auditorch.audit.errors import AuditError
from auditorch.audit.reproduce import reproduce
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec
from click.testing import CliRunner, Result

from .runs import write_project

SPEC = """version: 1
model: {factory: model.py:build, weights: model.safetensors}
data: {source: test.npz, limit: 30}
checks:
  - performance
  - evasion: {id: linf, attack: pgd, norm: linf, eps: 0.05, steps: 5}
variants:
  - regularization: {train: test.npz, epochs: 1, mixup: 0}
seed: 3
"""


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    (folder / "audit.yaml").write_text(SPEC)
    run_audit(load_spec(folder / "audit.yaml"), folder / "out")
    return folder / "out"


@pytest.mark.parametrize(("check", "variant"), [("performance", "base"), ("linf", "base"), ("linf", "regularization")])
def test_every_number_and_file_comes_out_again(audited: Path, check: str, variant: str) -> None:
    before = {path: path.read_bytes() for path in audited.rglob("*") if path.is_file()}
    claims = list(reproduce(audited, check, variant))
    assert [claim for claim in claims if not claim.ok] == []
    record = json.loads((audited / "audit.json").read_bytes())
    recorded = next(v for v in record["variants"] if v["id"] == variant)
    result = next(r for r in recorded["results"] if r["id"] == check)
    assert len(claims) == 3 + len(result["metrics"]) + len(result["evidence"])
    assert {path: path.read_bytes() for path in audited.rglob("*") if path.is_file()} == before


def test_a_recorded_number_that_does_not_come_out_is_named(audited: Path, tmp_path: Path) -> None:
    shutil.copytree(audited, tmp_path / "out")
    path = tmp_path / "out/audit.json"
    record = json.loads(path.read_bytes())
    metric = next(m for m in record["variants"][0]["results"][1]["metrics"] if m["name"] == "robust_accuracy")
    metric["value"] = 0.123
    path.write_text(json.dumps(record))
    done = call("reproduce", str(tmp_path / "out"), "linf", "--base", str(audited.parent), "--quiet")
    assert done.exit_code == 1
    assert "DIFFERENT   linf.robust_accuracy is the same (recorded" in done.stdout
    assert "1 different" in done.stdout


def test_on_the_command_line(audited: Path) -> None:
    done = call("reproduce", str(audited), "performance")
    assert done.exit_code == 0
    assert "same        performance.accuracy is the same" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(("perfomance",), "Did you mean 'performance'"), (("linf", "regularisation"), "Did you mean 'regularization'")],
)
def test_unknown_names_are_told(audited: Path, arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(AuditError, match=problem):
        list(reproduce(audited, *arguments))
