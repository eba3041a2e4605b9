"""Extraction: copies are judged on what was not asked, transfer is told from noise, forged records are noticed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.audit.checks.extraction import ExtractionCheck, small_network
from auditorch.audit.errors import DataError
from auditorch.audit.samples import Samples
from auditorch.reports.record import Result
from pydantic import ValidationError
from torch import nn

from .fakes import FakeContext, linear_model, small_cnn, toy_samples, toy_target


def audited(tmp_path: Path, samples: Samples | None = None, module: nn.Module | None = None, **options: Any) -> Result:
    context = FakeContext(tmp_path, "extraction", seed=3, sources={"pool.npz": toy_samples(200, seed=8, contrast=0.02)})
    check = ExtractionCheck.model_validate({"budget": 200, "epochs": 20, "lr": 5e-3, "eps": 0.12, **options})
    return check.run(
        toy_target(module or linear_model()), samples or toy_samples(400, contrast=0.1, noise=0.1), context
    )


def value(result: Result, name: str) -> float:
    found = result.metric(name)
    assert found is not None, name
    assert found.value is not None, name
    return found.value


@pytest.mark.parametrize("attack", ["knockoff", "copycat", "knockoff_adaptive"])
def test_an_easy_model_is_copied_and_attacked_through_the_copy(tmp_path: Path, attack: str) -> None:
    result = audited(tmp_path, attack=attack)
    assert value(result, "fidelity") > 0.9
    assert value(result, "accuracy") > 0.9
    assert value(result, "transfer_success_rate") > value(result, "transfer_control") + 0.3
    gain = result.metric("transfer_gain")
    assert gain is not None
    assert gain.ci_low is not None
    assert gain.ci_low > 0.2
    assert value(result, "queries") == 200
    assert result.metrics[0].n == 200
    assert {metric.name for metric in result.metrics} == set(ExtractionCheck.metrics)
    assert [finding.severity for finding in result.findings] == ["medium", "medium"] or any(
        finding.title == "A copy is enough to attack the model" for finding in result.findings
    )


def test_a_copy_that_learned_nothing_is_no_better_than_the_control(tmp_path: Path) -> None:
    result = audited(tmp_path, epochs=1, lr=1e-7, budget=10)
    assert value(result, "fidelity") < 0.6
    gain = result.metric("transfer_gain")
    assert gain is not None
    assert gain.ci_low is not None
    assert gain.ci_low < 0.1
    assert [finding.severity for finding in result.findings] == ["info"]


def test_the_attacker_s_own_pool_and_the_same_architecture(tmp_path: Path) -> None:
    result = audited(tmp_path, pool="pool.npz", architecture="same", budget=500, module=linear_model())
    assert any("has 200 inputs: the budget of 500 was not spent" in text for text in result.warnings)
    assert result.metrics[0].n == 400
    check = ExtractionCheck.model_validate({"pool": "pool.npz", "architecture": "same", "attack": "copycat"})
    assert check.files() == ("pool.npz",)
    assert check.required() == {"labels", "gradients"}
    assert ExtractionCheck().required() == {"scores"}


def test_verify_asks_the_model_again(tmp_path: Path) -> None:
    samples = toy_samples(120, contrast=0.1, noise=0.1)
    options = {"budget": 60, "epochs": 3, "eps": "12/255"}
    check, context = ExtractionCheck.model_validate(options), FakeContext(tmp_path, "extraction", seed=3)
    result = check.run(toy_target(), samples, context)

    def failed(claimed: Result = result, module: nn.Module | None = None, by: ExtractionCheck = check) -> list[str]:
        target = toy_target(module)
        return [claim.what for claim in by.verify(target, samples, claimed, context) if not claim.ok]

    assert failed() == []
    assert "the model answers as recorded (logits)" in failed(module=small_cnn())
    smaller = ExtractionCheck.model_validate({**options, "eps": 0.01})
    assert failed(by=smaller) == ["the adversarial inputs lie in the ball and bounds"]
    forged = tuple(m.model_copy(update={"value": 0.0}) if m.name == "fidelity" else m for m in result.metrics)
    assert failed(result.model_copy(update={"metrics": forged})) == ["fidelity follows from the answers"]


def test_bad_options_and_too_little_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few to be shared out"):
        audited(tmp_path, samples=toy_samples(12))
    with pytest.raises(ValidationError, match="greater than or equal to 10"):
        ExtractionCheck(budget=2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (7,)])
def test_the_small_network_takes_pictures_and_rows(shape: tuple[int, ...]) -> None:
    assert small_network(shape, 5)(torch.rand(2, *shape)).shape == (2, 5)
