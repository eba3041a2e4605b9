"""The audit of a privacy budget: honest trainings stand, broken ones are named, forged records are noticed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks import dp
from auditorch.audit.checks.dp import DPAudit
from auditorch.audit.errors import DataError
from auditorch.audit.samples import Samples
from auditorch.privacy.dp_sgd import DPResult, dp_fine_tune
from auditorch.reports.record import Metric, Result
from pydantic import ValidationError
from torch import nn

from .fakes import FakeContext, samples_of, toy_samples, toy_target
from .test_membership import Memory

OPTIONS: dict[str, Any] = {
    "train": "train.npz",
    "noise_multiplier": 3.0,
    "delta": 1e-5,
    "epochs": 6,
    "batch_size": 15,
    "canaries": 1200,
}
"""15 of 200 records in each step: about 60 of 800 with the canaries."""


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()


def context(tmp_path: Path) -> FakeContext:
    return FakeContext(tmp_path, "dp", seed=5, sources={"train.npz": toy_samples(200)})


def audited(tmp_path: Path, **options: Any) -> Result:
    check = DPAudit.model_validate({**OPTIONS, **options})
    return check.run(toy_target(network()), toy_samples(), context(tmp_path))


def value(result: Result, name: str) -> float:
    found = result.metric(name)
    assert found is not None, name
    assert found.value is not None, name
    return found.value


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("honest")
    return folder, audited(folder)


def test_an_honest_training_stands_and_could_have_been_refuted(honest: tuple[Path, Result]) -> None:
    _, result = honest
    assert 0 <= value(result, "epsilon_lower_bound") < value(result, "epsilon") < value(result, "highest_provable")
    assert value(result, "delta") == 1e-5
    assert value(result, "sample_rate") == pytest.approx(15 / 200, rel=0.02)
    assert value(result, "steps") == pytest.approx(80, abs=2)
    assert [finding.severity for finding in result.findings] == ["info"]
    assert "The claim stands" in result.summary
    assert result.warnings == ()
    assert {metric.name for metric in result.metrics} == set(DPAudit.metrics)


def test_a_training_without_its_noise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(module: nn.Module, x: Any, y: Any, *, config: Any, **rest: Any) -> DPResult:
        told = dp_fine_tune(module, x, y, config=replace(config, epochs=1))
        done = dp_fine_tune(module, x, y, config=replace(config, noise_multiplier=0.0), **rest)
        return replace(done, budget=told.budget)

    monkeypatch.setattr(dp, "dp_fine_tune", silent)
    result = audited(tmp_path)
    assert value(result, "epsilon_lower_bound") > value(result, "epsilon")
    assert result.findings[0].severity == "critical"
    assert "The claim is false" in result.summary


def test_fewer_records_keep_the_sampling_rate(tmp_path: Path) -> None:
    result = audited(tmp_path, limit=50, canaries=60, epochs=1)
    assert value(result, "sample_rate") == pytest.approx(15 / 200, rel=0.1)
    assert value(result, "steps") == pytest.approx(200 / 15, abs=2)
    assert not any("sampling rate is" in text for text in result.warnings)
    coarse = audited(tmp_path, limit=10, canaries=20, epochs=1, batch_size=5)
    assert any("sampling rate is" in text for text in coarse.warnings)
    weak = audited(tmp_path, canaries=20, epochs=1, noise_multiplier=0.7)
    assert any("could not have refuted" in text for text in weak.warnings)


def test_verify_recomputes_the_bound_and_the_coins(honest: tuple[Path, Result]) -> None:
    folder, result = honest
    check, target, ctx = DPAudit.model_validate(OPTIONS), toy_target(network()), context(folder)

    def failed(claimed: Result = result, at: FakeContext = ctx) -> list[str]:
        return [claim.what for claim in check.verify(target, toy_samples(), claimed, at) if not claim.ok]

    assert failed() == []
    forged = tuple(m.model_copy(update={"value": 0.0}) if m.name == "highest_provable" else m for m in result.metrics)
    assert failed(result.model_copy(update={"metrics": forged})) == ["highest_provable follows from the scores"]
    assert failed(at=replace(ctx, seed=6)) == ["the canaries were included by the coins of the seed"]


def planted(n: int) -> tuple[Samples, Samples]:
    """Noise pictures with random labels: those included, and those that coins kept out."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8), rng.integers(0, 4, n)
    side = rng.random(n) < 0.5
    classes = toy_samples().classes
    return samples_of(images[side], labels[side], classes), samples_of(images[~side], labels[~side], classes)


OWN = {"included": "in.npz", "excluded": "out.npz", "epsilon": 1.0, "delta": 1e-5}


@pytest.mark.parametrize("remembers", [True, False])
def test_the_owner_s_own_canaries_are_asked_about(tmp_path: Path, remembers: bool) -> None:
    inside, outside = planted(400)
    ctx = FakeContext(tmp_path, "dp", sources={"in.npz": inside, "out.npz": outside})
    model = Memory(inside) if remembers else network()
    check = DPAudit.model_validate(OWN)
    result = check.run(toy_target(model), toy_samples(), ctx)
    assert (value(result, "epsilon_lower_bound") > 1) == remembers
    assert (result.findings[0].severity == "critical") == remembers
    assert result.metric("steps") is None
    failed = [c.what for c in check.verify(toy_target(network()), toy_samples(), result, ctx) if not c.ok]
    assert failed == (["the model answers as recorded, on these canaries"] if remembers else [])


def test_canaries_that_no_coin_chose_are_remarked_and_an_empty_side_refused(tmp_path: Path) -> None:
    inside, outside = planted(400)
    few = outside.select(np.arange(20))
    ctx = FakeContext(tmp_path, "dp", sources={"in.npz": inside, "out.npz": few})
    result = DPAudit.model_validate(OWN).run(toy_target(network()), few, ctx)
    assert any("fair coins would hardly" in text for text in result.warnings)
    ctx = FakeContext(tmp_path, "dp", sources={"in.npz": inside, "out.npz": outside.select(np.arange(0))})
    with pytest.raises(DataError, match="both sides"):
        DPAudit.model_validate(OWN).run(toy_target(network()), few, ctx)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either train"),
        ({"train": "a"}, "either epsilon or noise_multiplier"),
        ({"train": "a", "epsilon": 1, "included": "b"}, "give either train"),
        ({"included": "a", "excluded": "b"}, "say what is claimed"),
        ({"included": "a", "excluded": "b", "epsilon": 1, "delta": 1e-5, "lr": 1}, "lr: only used with train"),
    ],
)
def test_bad_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPAudit.model_validate(fields)


def test_a_gate_can_compare_the_two(honest: tuple[Path, Result]) -> None:
    """The default id is ``dp``, and both sides of ``dp.epsilon_lower_bound <= dp.epsilon`` are metrics of it."""
    _, result = honest
    assert result.id == "dp"
    bound, claim = result.metric("epsilon_lower_bound"), result.metric("epsilon")
    assert isinstance(bound, Metric)
    assert isinstance(claim, Metric)
    assert DPAudit.model_validate(OPTIONS).files() == ("train.npz",)
    assert DPAudit.model_validate(OWN).required() == {"scores"}
