"""Privacy of text models: the audit of epsilon, private training that was killed, canaries in pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.audit.checks import dp
from auditorch.audit.checks.dp import DPAudit
from auditorch.audit.loading.model import load
from auditorch.audit.samples import Samples
from auditorch.audit.spec import parse_spec
from auditorch.audit.target import Target
from auditorch.audit.variants.dp_sgd import DPSGDVariant
from auditorch.privacy.dp_sgd import DPResult, dp_fine_tune
from auditorch.privacy.private_run import PrivateRun
from auditorch.reports.record import Result
from torch import nn

from ..attacks.text_world import tiny_bert
from .fakes import FakeContext
from .test_text_variants import write_texts

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private")
    tiny_bert(folder / "bert")
    write_texts(folder / "train.csv", 48, 0)
    return folder


def read(folder: Path) -> tuple[Target, Samples]:
    spec = {"version": 1, "model": {"source": "bert", "modality": "text"}, "data": {"source": "train.csv"},
            "checks": ["performance"]}  # fmt: skip
    return load(parse_spec(spec, folder), torch.device("cpu"))


def audited(folder: Path, out: Path) -> Result:
    """200 canaries beside 48 texts of many lengths; 12 of the texts in each step, under much noise."""
    target, samples = read(folder)
    check = DPAudit(train="train", noise_multiplier=3.0, delta=1e-5, epochs=6, batch_size=12, canaries=200, lr=0.1)
    return check.run(target, samples, FakeContext(out, "dp", seed=5, sources={"train": samples}))


def value(result: Result, name: str) -> float:
    found = result.metric(name)
    assert found is not None
    assert found.value is not None
    return found.value


def test_an_honest_training_on_texts_stands(project: Path, tmp_path: Path) -> None:
    result = audited(project, tmp_path)
    assert value(result, "epsilon_lower_bound") < value(result, "epsilon") < value(result, "highest_provable")
    assert [finding.severity for finding in result.findings] == ["info"]
    assert 0.35 < value(result, "canary_auc") < 0.8


def test_a_training_on_texts_without_its_noise_is_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(module: nn.Module, x: Any, y: Any, *, config: Any, **rest: Any) -> DPResult:
        told = dp_fine_tune(module, x, y, config=replace(config, noise_multiplier=3.0))
        done = dp_fine_tune(module, x, y, config=replace(config, noise_multiplier=0.0), **rest)
        return replace(done, budget=told.budget)

    monkeypatch.setattr(dp, "dp_fine_tune", silent)
    result = audited(project, tmp_path)
    assert value(result, "epsilon_lower_bound") > value(result, "epsilon")
    assert value(result, "canary_auc") > 0.95
    assert [finding.severity for finding in result.findings] == ["critical"]


def test_a_private_training_on_texts_that_was_killed_in_an_epoch_ends_with_the_same_weights(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps an epoch, cut off in the sixth: made again, steps draw the same texts, padding, dropout and noise."""
    target, samples = read(project)
    options = {"train": "train", "epochs": 3, "batch_size": 12, "start": "target", "lr": 0.1}
    variant = DPSGDVariant.model_validate({**options, "noise_multiplier": 1.0, "delta": 1e-3, "momentum": 0.9})

    def built(folder: str) -> dict[str, torch.Tensor]:
        where = FakeContext(tmp_path / folder, variant="variant", seed=0, sources={"train": samples})
        return variant.build(target, samples, where).module.state_dict()

    step, taken = PrivateRun.step, list[int]()

    def counted(run: PrivateRun) -> None:
        taken.append(run.state.steps)
        if len(taken) == 6:
            raise KeyboardInterrupt
        step(run)

    whole = built("whole")
    monkeypatch.setattr(PrivateRun, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        built("cut")
    again = built("cut")
    assert taken == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10, 11], "an epoch was kept, the rest is made again"
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    assert not torch.equal(whole["body.classifier.weight"], target.module.state_dict()["body.classifier.weight"])
