"""Sweeps: the best setting is found on held-out training data, and what was built is what is reloaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml
from auditorch.audit.checks.base import Context
from auditorch.audit.cli import main
from auditorch.audit.errors import SpecError
from auditorch.audit.runner import run_audit
from auditorch.audit.samples import Samples
from auditorch.audit.spec import load_spec
from auditorch.audit.target import Target
from auditorch.audit.variants import sweep
from auditorch.audit.variants.sweep import SweepVariant
from auditorch.audit.verify import verify
from auditorch.defenses.selection import Score
from auditorch.reports.record import Chart, Table, VariantRecord
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from .fakes import encode, toy_samples
from .runs import write_project

SPEC = """\
version: 1
name: toy
model: {factory: model.py:build, weights: model.safetensors}
data: {source: test.npz}
checks: [performance]
variants:
  - sweep:
      id: tuned
      train: train.npz
      defense: {regularization: {epochs: 1, batch_size: 16}}
      over: {lr: [1.0e-4, 1.0e+6]}
      sampler: grid
      eps: 0.02
      steps: 3
"""


def project(folder: Path, text: str = SPEC) -> Path:
    """The toy project with 80 training samples and a sweep, one of whose settings ruins the model."""
    spec = write_project(folder)
    train = toy_samples(80, start=1000, seed=5)
    np.savez(folder / "train.npz", x=train.inputs[np.arange(80)], y=train.labels)
    spec.write_text(text)
    return spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    project(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(folder: Path) -> VariantRecord:
    found = run_audit(load_spec(folder / "audit.yaml"), folder / "out").variant("tuned")
    assert found is not None
    assert found.status == "ok", found.error
    return found


def test_the_setting_that_ruins_the_model_is_not_chosen(tuned: VariantRecord) -> None:
    assert tuned.parameters["chosen"] == {"lr": 1e-4}
    held = next(metric for metric in tuned.metrics if metric.name == "validation_accuracy")
    assert (held.value, held.n) == (1.0, 16), "a fifth of 80 training samples"
    performance = tuned.result("performance")
    assert performance is not None
    accuracy = performance.metric("accuracy")
    assert accuracy is not None
    assert accuracy.value == 1.0


def test_every_setting_is_in_the_record(tuned: VariantRecord) -> None:
    table = next(figure for figure in tuned.figures if isinstance(figure, Table) and figure.id == "trials")
    roles = {row[1]: row[4] for row in table.rows}
    assert roles["0.0001"] == "chosen"
    assert roles["1e+06"] != "chosen"
    chart = next(figure for figure in tuned.figures if isinstance(figure, Chart) and figure.id == "pareto")
    assert {"Pareto front", "chosen"} <= {line.name for line in chart.lines}
    assert tuned.summary.startswith("Of 2 settings, lr 0.0001 was chosen (balanced). On 16 training samples held out")


def test_the_chosen_variant_is_reloaded_and_verified(tuned: VariantRecord, folder: Path) -> None:
    claims = list(verify(folder / "out"))
    assert any(f"{tuned.id}:performance" in claim.what for claim in claims)
    assert all(claim.ok for claim in claims), [claim for claim in claims if not claim.ok]


def test_the_chosen_model_is_exported_with_a_card(tuned: VariantRecord, folder: Path) -> None:
    exported = folder / "out" / "export" / "tuned"
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    model.load_state_dict(load_file(exported / "model.safetensors"))  # fits the model's own factory
    test = toy_samples(40)
    x = encode(test.inputs[np.arange(40)])
    assert float((model(x).argmax(1).numpy() == test.labels).mean()) == 1.0
    card = (exported / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert "fits the same factory" in card
    assert tuned.summary.split(".")[0] in card.replace("\\", "")
    facts = json.loads((exported / "variant.json").read_text())
    assert facts["parameters"]["chosen"] == {"lr": 1e-4}


def test_any_variant_is_exported_by_command(folder: Path, tuned: VariantRecord, tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["export", str(folder / "out"), tuned.id, "-o", str(tmp_path / "x")]).exit_code == 0
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"model.safetensors", "README.md", "variant.json"}
    wrong = CliRunner().invoke(main, ["export", str(folder / "out"), "tunned"])
    assert wrong.exit_code == 2
    assert "Did you mean 'tuned'?" in wrong.output
    weights = folder / "out" / "evidence" / "tuned" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        tampered = CliRunner().invoke(main, ["export", str(folder / "out"), "tuned", "-o", str(tmp_path / "y")])
    finally:
        weights.write_bytes(kept)
    assert tampered.exit_code == 2
    assert "was changed since the audit" in tampered.output
    assert not (tmp_path / "y").exists()


class Spy(SweepVariant):
    """Notes which samples each trial trains on and which it is judged by."""

    name: ClassVar[str] = "sweep"
    log: ClassVar[list[tuple[list[int], list[int]]]] = []

    def _score(
        self,
        number: int,
        parameters: object,
        target: Target,
        samples: Samples,
        data: Samples,
        splits: Sequence[object],
        context: Context,
    ) -> Score:
        for rows, held in splits:  # pyright: ignore[reportGeneralTypeIssues]
            self.log.append((data.ids[rows.numpy()].tolist(), data.ids[held.numpy()].tolist()))
        return Score(10, 10, 10)


def test_folds_hold_out_each_training_sample_once(tmp_path: Path) -> None:
    spec = load_spec(project(tmp_path))
    options = {**spec.variants[0].model_dump(), "folds": 4, "over": {"lr": [1e-4]}}
    run_audit(replace(spec, variants=(Spy.model_validate(options),)), tmp_path / "out")
    assert len(Spy.log) == 4
    assert sorted(i for _, held in Spy.log for i in held) == list(range(80))
    assert all(set(rows).isdisjoint(held) for rows, held in Spy.log)


def test_a_killed_sweep_does_not_repeat_its_trials(tmp_path: Path) -> None:
    spec = project(tmp_path)
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from auditorch.audit.variants import sweep\n"
        "from auditorch.audit.runner import run_audit\n"
        "from auditorch.audit.spec import load_spec\n"
        "kept = sweep.TrialLog.put\n"
        "def put(self, *args):\n"
        "    kept(self, *args)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "sweep.TrialLog.put = put\n"
        f"run_audit(load_spec(Path({str(spec)!r})), Path({str(tmp_path / 'out')!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    (log,) = (tmp_path / "out" / "results").glob("*trials.json")
    assert len(json.loads(log.read_text())["trials"]) == 1
    trained: list[int] = []
    original = sweep.SweepVariant._score

    def counted(self: SweepVariant, number: int, *rest: object) -> Score:
        trained.append(number)
        return original(self, number, *rest)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep.SweepVariant, "_score", counted)
        again = run_audit(load_spec(spec), tmp_path / "out").variant("tuned")
    assert trained == [1]
    assert again is not None
    assert again.parameters["chosen"] == {"lr": 1e-4}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{lr: [1.0e-4, 1.0e+6]}", "{lrr: [1]}", "unknown option of regularization 'lrr'. Did you mean 'lr'?"),
        ("{lr: [1.0e-4, 1.0e+6]}", "{lr: {low: 1, high: 2}}", "a grid needs lists of values, but lr is a span"),
        ("{lr: [1.0e-4, 1.0e+6]}", "{lr: []}", "at least one value"),
        ("{lr: [1.0e-4, 1.0e+6]}", "{lr: [-1]}", "greater than 0"),
        ("regularization:", "regularisation:", "Did you mean 'regularization'?"),
        ("sampler: grid", "sampler: gird", "Did you mean 'grid'?"),
        ("steps: 3", "attack: pgdd", "Did you mean 'pgd'?"),
        ("{epochs: 1, batch_size: 16}", "{epochs: none}", "epochs"),
    ],
)
def test_wrong_sweeps_are_told_by_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    spec = project(tmp_path, SPEC.replace(old, new))
    with pytest.raises(SpecError) as error:
        load_spec(spec)
    assert message in str(error.value)
    assert "audit.yaml:" in str(error.value)
