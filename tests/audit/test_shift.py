"""The shift check: planted models with known answers, evidence, verify."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.shift import Shift
from auditorch.audit.samples import Samples
from auditorch.reports.record import Gallery, Result, Table
from pydantic import ValidationError
from torch import Tensor, nn

from .fakes import FakeContext, FakeProgress, samples_of, small_cnn, toy_samples, toy_target

SMALL: dict[str, Any] = {
    "rotations": (-20, 0, 20),
    "translations": (-0.125, 0, 0.125),
    "scales": (1,),
    "contrast": (0.5, 1),
    "gamma": (1,),
    "sigmas": (1,),
}


class Brightness(nn.Module):
    """Class 1 where the mean exceeds a half: blind to where things are."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([torch.full_like(mean, 0.5), mean], 1)


class TopRow(nn.Module):
    """Class 1 where the top row holds more than the bottom row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, -1].sum(1), x[:, 0, 0].sum(1)], 1)


def run(path: Path, samples: Samples, module: nn.Module | None = None, **fields: Any) -> Result:
    check = Shift.model_validate({**SMALL, **fields})
    return check.run(toy_target(module, len(samples.classes)), samples, FakeContext(path, "shift"))


def value(result: Result, name: str) -> float:
    metric = result.metric(name)
    assert metric is not None
    assert metric.value is not None
    return metric.value


def flat(*levels: float) -> Samples:
    """Uniform images, class 1 above a half."""
    images = np.repeat(np.round(np.array(levels) * 255), 64).reshape(-1, 8, 8).astype(np.uint8)
    return samples_of(images, (np.array(levels) > 0.5).astype(np.int64), ("dark", "light"))


@pytest.fixture
def samples() -> Samples:
    return toy_samples(40, noise=0.1, contrast=0.12)


def test_what_breaks_is_what_must(tmp_path: Path) -> None:
    """Brightness moves flat images by 0.1, contrast leaves them: those within 0.1 of a half fall."""
    result = run(tmp_path, flat(0.1, 0.35, 0.45, 0.55, 0.65, 0.9), Brightness(), padding="border")
    assert value(result, "clean_accuracy") == 1
    assert value(result, "spatial_robust_accuracy") == 1
    assert value(result, "blur_robust_accuracy") == 1
    assert value(result, "colour_robust_accuracy") == pytest.approx(4 / 6)
    assert value(result, "robust_accuracy") == pytest.approx(4 / 6)
    titles = {finding.title: finding.severity for finding in result.findings}
    assert titles["33.3 % of correct predictions are overturned by changing light and colour"] == "low"
    assert titles["0.0 % of correct predictions are overturned by blurring the image"] == "info"
    # Black corners make bright images darker, so with the default padding rotation matters too.
    dark = run(tmp_path, flat(0.9, 0.52), Brightness(), kinds=("spatial",))
    assert value(dark, "spatial_robust_accuracy") == 0.5


def test_a_model_that_reads_one_row_falls_to_translation_and_not_to_light(tmp_path: Path) -> None:
    images = np.full((10, 8, 8), 40, dtype=np.uint8)
    images[:, 0] = 200
    result = run(tmp_path, samples_of(images, np.ones(10, dtype=np.int64), ("bottom", "top")), TopRow())
    assert value(result, "clean_accuracy") == 1
    assert value(result, "spatial_robust_accuracy") == 0
    assert value(result, "colour_robust_accuracy") == 1
    worst = next(finding for finding in result.findings if "turning" in finding.title)
    assert worst.severity == "high"
    assert "leaves 0.0 % right" in worst.detail
    assert "moved 12.5 %" in worst.detail


def test_only_the_kinds_asked_for(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples, kinds=("blur",))
    assert [metric.name for metric in result.metrics] == ["clean_accuracy", "robust_accuracy", "blur_robust_accuracy"]
    assert value(result, "robust_accuracy") == value(result, "blur_robust_accuracy")


def test_evidence_figures_and_progress_fit_together(tmp_path: Path, samples: Samples) -> None:
    progress = FakeProgress()
    context = FakeContext(tmp_path, "shift", batch_size=13, progress=progress)
    check = Shift.model_validate(SMALL)
    result = check.run(toy_target(), samples, context)
    assert progress.done == pytest.approx(3 * 40)
    other = run(tmp_path, samples)
    assert [m.value for m in result.metrics] == [m.value for m in other.metrics]
    figures = {figure.id: figure for figure in result.figures}
    gallery, table = figures["gallery"], figures["single_changes"]
    assert isinstance(gallery, Gallery)
    tensors = context.read_evidence(result.evidence[1])
    assert {picture.tensor for picture in gallery.pictures} == set(tensors)
    assert len(gallery.items) == len(tensors["clean"])
    assert all(len(item.captions) == 2 for item in gallery.items)
    assert isinstance(table, Table)
    # Two rotations, two translations each way, two brightnesses, one contrast, one blur.
    assert len(table.rows) == 2 + 4 + 2 + 1 + 1
    assert result.forwards > 40 * 10
    for metric in result.metrics:
        assert metric.name in Shift.metrics
        assert metric.label
        assert metric.ci_low is not None


def test_verify_holds_then_fails_for_another_model_labels_number_or_change(tmp_path: Path, samples: Samples) -> None:
    check, context = Shift.model_validate(SMALL), FakeContext(tmp_path, "shift")
    result = check.run(toy_target(), samples, context)

    def failing(module: nn.Module | None = None, data: Samples = samples, claimed: Result = result) -> list[str]:
        return [claim.what for claim in check.verify(toy_target(module), data, claimed, context) if not claim.ok]

    assert failing() == []
    assert "the model predicts as recorded" in failing(small_cnn())
    relabelled = samples_of(np.asarray(samples.inputs), (samples.labels + 1) % 4, samples.classes)
    assert failing(data=relabelled) == ["the changes were applied to the audited samples and labels"]
    forged = tuple(m.model_copy(update={"value": 0.99}) if m.name == "robust_accuracy" else m for m in result.metrics)
    assert failing(claimed=result.model_copy(update={"metrics": forged})) == [
        "robust_accuracy follows from the recorded errors"
    ]
    tensors = context.read_evidence(result.evidence[0])
    tensors["spatial_worst"] = torch.zeros_like(tensors["spatial_worst"])
    made_up = context.evidence("predictions", tensors)
    lie = result.model_copy(update={"evidence": (made_up, *result.evidence[1:])})
    assert failing(claimed=lie) == ["the model errs under the recorded spatial changes"]


def test_a_model_that_is_never_right_has_no_findings_and_no_gallery(tmp_path: Path) -> None:
    images = flat(0.1, 0.2)
    wrong = samples_of(np.asarray(images.inputs), np.ones(2, dtype=np.int64), images.classes)
    result = run(tmp_path, wrong, Brightness())
    assert value(result, "robust_accuracy") == 0
    assert result.findings == ()
    assert "gallery" not in {figure.id for figure in result.figures}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": [0]}, "scales must be above 0"),
        ({"kinds": ["blur"], "sigmas": [0]}, "the blur grid holds no change"),
        ({"rotations": []}, "at least 1"),
        ({"padding": "black"}, "'zeros', 'border' or 'reflection'"),
    ],
)
def test_bad_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Shift.model_validate(fields)
