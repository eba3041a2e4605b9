import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from auditorch.audit.cli import main
from auditorch.audit.errors import SpecError
from auditorch.audit.spec import parse_spec
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from .fakes import toy_samples
from .runs import write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec with two budgets and no other variant."""
    folder = tmp_path_factory.mktemp("dp")
    spec = write_project(folder)
    train = toy_samples(120, seed=1)
    np.savez(folder / "train.npz", x=train.inputs[np.arange(120)], y=train.labels)
    variant = "{train: train.npz, epsilon: [2, 8], delta: 1e-3, epochs: 4, batch_size: 40, lr: 1, trials: 2}"
    text = spec.read_text().replace("gates:", f"variants:\n  - dp_sgd: {variant}\ngates:")
    spec.write_text(text.replace("performance.accuracy", "dp_sgd-eps8:performance.accuracy").replace("0.8", "0.01"))
    return spec


@pytest.fixture(scope="module")
def trained(project: Path) -> tuple[Path, Result]:
    output = project.parent / "out"
    return output, CliRunner().invoke(main, ["dp-train", str(project), "-o", str(output)])


def single(project: Path, gate: str = ">= 0.01") -> Path:
    """The spec with one training of given noise."""
    text = project.read_text().replace("epsilon: [2, 8]", "noise_multiplier: 1.5").replace(", trials: 2", "")
    path = project.with_name("single.yaml")
    path.write_text(text.replace("dp_sgd-eps8:", "dp_sgd:").replace(">= 0.01", gate))
    return path


def card_epsilon(output: Path, target: int) -> float:
    return json.loads((output / f"dp_sgd-eps{target}" / "card.json").read_text())["guarantee"]["epsilon"]


def test_weights_card_and_audit_of_each_budget(trained: tuple[Path, Result]) -> None:
    output, result = trained
    assert result.exit_code == 0, result.output + result.stderr
    record = json.loads((output / "audit.json").read_text())
    audited = {variant["id"]: variant for variant in record["variants"]}
    for target in (2, 8):
        folder = output / f"dp_sgd-eps{target}"
        card: dict[str, Any] = json.loads((folder / "card.json").read_text())
        weights = (folder / "weights.safetensors").read_bytes()
        assert card["sha256"]["weights"] == hashlib.sha256(weights).hexdigest()
        assert set(load_file(folder / "weights.safetensors")) == {"1.weight", "1.bias"}, "fits the factory"
        guarantee = card["guarantee"]
        assert 0.98 * target < guarantee["epsilon"] <= target
        assert guarantee["epsilon"] < guarantee["epsilon_with_tuning"]
        assert guarantee["delta"] == 1e-3
        assert guarantee["accountant"] == "prv"
        assert guarantee["epsilon_by_accountant"]["rdp"] > guarantee["epsilon_by_accountant"]["pld"]
        assert card["mechanism"]["steps"] == 12
        assert card["settings"]["batch_size"] == 40
        assert all(len(value) == 64 for value in card["sha256"].values())
        accuracy = card["audit"]["results"]["performance"]["accuracy"]
        assert accuracy == next(
            metric["value"]
            for metric in audited[f"dp_sgd-eps{target}"]["results"][0]["metrics"]
            if metric["name"] == "accuracy"
        )
        text = (folder / "card.md").read_text()
        assert f"{guarantee['epsilon']:.6g}" in text
        assert card["sha256"]["training_data"] in text
        assert any("known seed" in warning for warning in card["warnings"])
    figures = {chart["id"]: chart for chart in audited["dp_sgd-eps8"]["figures"]}
    curve = figures["privacy_utility"]["lines"][0]
    assert curve["x"] == [card_epsilon(output, target) for target in (2, 8)]
    noise = [json.loads((output / f"dp_sgd-eps{e}" / "card.json").read_text())["mechanism"] for e in (2, 8)]
    assert noise[0]["noise_multiplier"] > noise[1]["noise_multiplier"]


def test_again_takes_everything_over(project: Path, trained: tuple[Path, Result]) -> None:
    output, _ = trained
    before = (output / "dp_sgd-eps2" / "card.json").read_bytes()
    again = CliRunner().invoke(main, ["dp-train", str(project), "-o", str(output)])
    assert again.exit_code == 0
    assert "taken over" in again.stderr
    assert (output / "dp_sgd-eps2" / "card.json").read_bytes() == before


def test_a_single_budget_lies_in_the_folder_itself(project: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["dp-train", str(single(project, ">= 0.999")), "-o", str(tmp_path), "--quiet"])
    assert result.exit_code == 1, "the gate fails or is open"
    assert result.stdout == ""
    assert {"weights.safetensors", "card.md", "card.json"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("variants:", "notes:"), "notes"),
        (("epsilon: [2, 8]", "epsilon: []"), "epsilon is an empty list"),
        (("epsilon: [2, 8]", "epsilon: [2, 2]"), "dp_sgd-eps2' is also that of"),
        (("dp_sgd-eps8:", "dp_sgd-eps9:"), "no variant 'dp_sgd-eps9'. Did you mean 'dp_sgd-eps8'?"),
        (("lr: 1", "lr: 1, views: 2"), "views above 1 needs augment"),
        (("lr: 1", "lr: 1, augment: {swap: 0.5}"), "takes values from other records"),
        (("lr: 1", "lr: 1, clipping: adaptive, secure_noise: true"), "does not cover the count"),
    ],
)
def test_bad_specs(project: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("[", r"\[").replace("?", r"\?")):
        parse_spec(project.read_text().replace(*change), project.parent)


def test_no_private_training_and_several_processes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_project(project.parent / "plain")
    result = CliRunner().invoke(main, ["dp-train", str(plain), "-o", str(project.parent / "none")])
    assert result.exit_code == 2
    assert "the spec has no private training" in result.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    several = CliRunner().invoke(main, ["dp-train", str(project), "-o", str(project.parent / "none")])
    assert several.exit_code == 2
    assert "dp_fine_tune in a script of your own" in several.stderr


KILLER = """
import os, signal, sys
from auditorch.audit.cli import main
from auditorch.privacy.private_run import PrivateRun

step = PrivateRun.step
def dying(self):
    if self.state.steps == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)
PrivateRun.step = dying
main(["dp-train", *sys.argv[1:]])
"""


def test_a_killed_training_goes_on_to_the_same_weights(project: Path) -> None:
    """Killed after seven of twelve steps, in the third epoch; then run again in the same folder."""
    spec, output, whole = str(single(project)), project.parent / "killed", project.parent / "whole"
    command = [sys.executable, "-W", "ignore", "-c", KILLER, spec, "-o", str(output)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = list((output / "results").glob("dp_sgd.*.safetensors"))
    assert len(kept) == 1, "the training so far is in the folder"
    for folder in (output, whole):
        done = CliRunner().invoke(main, ["dp-train", spec, "-o", str(folder)])
        assert done.exit_code == 0, done.stderr
    for name in ("weights.safetensors", "card.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    assert not kept[0].exists(), "the result is safe, so the state is gone"
