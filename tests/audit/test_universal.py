"""The universal and patch checks: planted models fall, a blind one does not; evidence, verify."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.patch import PatchCheck
from auditorch.audit.checks.universal import Universal
from auditorch.audit.checks.universal_base import UniversalCheck
from auditorch.audit.errors import DataError
from auditorch.audit.samples import Samples
from auditorch.reports.record import Chart, Gallery, Result
from pydantic import ValidationError
from torch import Tensor, nn

from .fakes import FakeContext, FakeProgress, linear_model, samples_of, small_cnn, toy_samples, toy_target

CHECKS: list[tuple[type[UniversalCheck], dict[str, Any]]] = [
    (Universal, {"eps": 0.1, "steps": 30}),
    (PatchCheck, {"size": 0.5, "steps": 30, "placements": 3}),
]


class Blind(nn.Module):
    """Looks at the image only in the ninth decimal."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0, 0, 0]) + 1e-9 * x.flatten(1)[:, :4]


class WhiteSpot(nn.Module):
    """The linear model, but a white spot of 2x2 pixels anywhere makes it choose class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear_model()

    def forward(self, x: Tensor) -> Tensor:
        spot = nn.functional.avg_pool2d(x, 2, 1).flatten(1).amax(1)
        bonus = nn.functional.leaky_relu(100 * (spot - 0.75), 0.05)
        return self.linear(x) + bonus[:, None] * torch.tensor([0.0, 0, 1, 0])


def value(result: Result, name: str) -> float:
    metric = result.metric(name)
    assert metric is not None
    assert metric.value is not None
    return metric.value


@pytest.fixture
def samples() -> Samples:
    return toy_samples(80, noise=0.03, contrast=0.12)


@pytest.mark.parametrize(("kind", "fields"), CHECKS)
def test_a_weak_model_falls_to_a_target_and_a_blind_one_does_not(
    tmp_path: Path, samples: Samples, kind: type[UniversalCheck], fields: dict[str, Any]
) -> None:
    check, context = kind.model_validate({**fields, "target": 2}), FakeContext(tmp_path, kind.name)
    result = check.run(toy_target(linear_model() if kind is Universal else WhiteSpot()), samples, context)
    assert value(result, "clean_accuracy") == 1
    assert value(result, "attack_success_rate") > 0.9
    assert value(result, "control_success_rate") < 0.3
    assert result.findings[0].severity in {"critical", "high"}
    blind = kind.model_validate(fields).run(toy_target(Blind()), samples, FakeContext(tmp_path, "blind"))
    assert value(blind, "attack_success_rate") == 0
    assert blind.findings[0].severity == "info"
    metric = blind.metric("attack_success_rate")
    assert metric is not None
    assert metric.ci_high is not None
    assert metric.ci_high > 0.05  # never seen to fall is not never falling


def test_the_perturbation_on_a_linear_model_is_the_closed_form(tmp_path: Path) -> None:
    two = toy_samples(60, k=2, noise=0.03)
    context = FakeContext(tmp_path, "universal")
    result = Universal(eps=0.05, steps=40, target=1).run(toy_target(k=2), two, context)
    delta = context.read_evidence(result.evidence[0])["attack"]
    weight = linear_model(2)[1].weight
    assert isinstance(weight, Tensor)
    seen = (weight[1] - weight[0]).view(1, 8, 8).sign()
    assert torch.allclose(delta * seen.abs(), 0.05 * seen, atol=1e-6)


@pytest.mark.parametrize(("kind", "fields"), CHECKS)
def test_evidence_halves_figures_and_progress_fit_together(
    tmp_path: Path, samples: Samples, kind: type[UniversalCheck], fields: dict[str, Any]
) -> None:
    progress = FakeProgress()
    context = FakeContext(tmp_path, kind.name, progress=progress)
    check = kind.model_validate(fields)
    result = check.run(toy_target(), samples, context)
    assert progress.done == progress.started[0][1]
    recorded = context.read_evidence(result.evidence[0])
    assert len(recorded["ids"]) == 40
    assert set(recorded["labels"].tolist()) == {0, 1, 2, 3}
    assert recorded["attack_predictions"].shape == (check.repeats, 40)
    right = recorded["clean_logits"].argmax(1) == recorded["labels"]
    overturned = (recorded["attack_predictions"] != recorded["labels"]).double().mean(0)[right].mean()
    assert value(result, "attack_success_rate") == pytest.approx(float(overturned))
    figures = {figure.id: figure for figure in result.figures}
    assert isinstance(figures["success"], Chart)
    gallery = figures["gallery"]
    assert isinstance(gallery, Gallery)
    assert {picture.tensor for picture in gallery.pictures} == set(context.read_evidence(result.evidence[1]))
    for metric in result.metrics:
        assert metric.name in kind.metrics
        assert metric.label
        assert metric.ci_low is not None
    again = check.run(toy_target(), samples, FakeContext(tmp_path, "again"))
    assert [m.value for m in again.metrics] == [m.value for m in result.metrics]


@pytest.mark.parametrize(("kind", "fields"), CHECKS)
def test_verify_holds_then_fails_for_another_model_labels_number_or_attack(
    tmp_path: Path, samples: Samples, kind: type[UniversalCheck], fields: dict[str, Any]
) -> None:
    check, context = kind.model_validate(fields), FakeContext(tmp_path, kind.name)
    result = check.run(toy_target(), samples, context)

    def failing(module: nn.Module | None = None, data: Samples = samples, claimed: Result = result) -> list[str]:
        return [claim.what for claim in check.verify(toy_target(module), data, claimed, context) if not claim.ok]

    assert failing() == []
    assert "the model predicts as recorded under the attack" in failing(small_cnn())
    relabelled = samples_of(np.asarray(samples.inputs), (samples.labels + 1) % 4, samples.classes)
    assert len(failing(data=relabelled)) == 1
    forged = tuple(m.model_copy(update={"value": 0.5}) if m.name == "clean_accuracy" else m for m in result.metrics)
    assert failing(claimed=result.model_copy(update={"metrics": forged})) == [
        "clean_accuracy follows from the recorded predictions"
    ]
    tensors = context.read_evidence(result.evidence[0])
    tensors["attack"] = 3 * tensors["attack"] + 1
    made_up = context.evidence("universal", tensors)
    lie = result.model_copy(update={"evidence": (made_up, *result.evidence[1:])})
    assert "the attack keeps to its limits" in failing(claimed=lie)


def test_too_few_samples_and_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        Universal().run(toy_target(), toy_samples(3), FakeContext(tmp_path))
    with pytest.raises(DataError, match="classes 0 to 3"):
        Universal(target=7).run(toy_target(), toy_samples(8), FakeContext(tmp_path))
    with pytest.raises(ValidationError, match="above 0"):
        Universal.model_validate({"eps": 0})
    with pytest.raises(ValidationError, match="fit the image"):
        PatchCheck.model_validate({"size": 0.9})


def test_a_model_that_is_never_right_leaves_rates_undefined(tmp_path: Path) -> None:
    data = toy_samples(8, k=2)
    wrong = samples_of(np.asarray(data.inputs), 1 - data.labels, data.classes)
    result = Universal(steps=2).run(toy_target(k=2), wrong, FakeContext(tmp_path))
    rate = result.metric("attack_success_rate")
    assert rate is not None
    assert rate.value is None
    assert result.warnings
    assert result.findings == ()
