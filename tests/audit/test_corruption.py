"""The corruption check: counts by hand, known answers, evidence, verify."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.attacks.corruptions.common import CORRUPTIONS, corrupt
from auditorch.attacks.streams import Streams
from auditorch.audit.checks.base import encoded
from auditorch.audit.checks.corruption import Corruption
from auditorch.audit.checks.corruption_measures import mean, relative_error
from auditorch.audit.errors import ModelError, UnsupportedError
from auditorch.audit.samples import Samples
from auditorch.reports.record import Chart, Gallery, Result, Table
from pydantic import ValidationError
from torch import Tensor, nn

from .fakes import FakeContext, FakeProgress, samples_of, small_cnn, toy_samples, toy_target

FEW = {"corruptions": ("gaussian_noise", "fog", "contrast"), "severities": (1, 5)}


class Threshold(nn.Module):
    """Class 1 where the mean of the image exceeds 0.6."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.full((len(x),), 0.6), x.flatten(1).mean(1)], 1)


def run(path: Path, samples: Samples, module: nn.Module | None = None, **fields: Any) -> Result:
    check = Corruption.model_validate({**FEW, **fields})
    return check.run(toy_target(module, len(samples.classes)), samples, FakeContext(path, "corruption"))


def value(result: Result, name: str) -> float:
    metric = result.metric(name)
    assert metric is not None
    assert metric.value is not None
    return metric.value


@pytest.fixture
def samples() -> Samples:
    return toy_samples(80, noise=0.2, contrast=0.12)


def test_accuracies_are_those_counted_by_hand(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples)
    target = toy_target()
    x, y = encoded(target, samples)
    streams = Streams.from_seed(0, torch.from_numpy(samples.ids))
    by_hand = {
        (name, s): float((target.module(corrupt(x, name, s, streams)).argmax(1) == y).double().mean())
        for name in FEW["corruptions"]
        for s in (1, 5)
    }
    clean = float((target.module(x).argmax(1) == y).double().mean())
    assert value(result, "clean_accuracy") == pytest.approx(clean)
    assert value(result, "corruption_accuracy") == pytest.approx(np.mean(list(by_hand.values())))
    assert value(result, "mean_corruption_error") == pytest.approx(1 - np.mean(list(by_hand.values())))
    assert value(result, "relative_corruption_error") == pytest.approx(clean - np.mean(list(by_hand.values())))
    assert value(result, "fog_accuracy") == pytest.approx((by_hand["fog", 1] + by_hand["fog", 5]) / 2)
    assert value(result, "accuracy_at_severity_5") == pytest.approx(
        np.mean([by_hand[name, 5] for name in FEW["corruptions"]])
    )
    names = {name: (by_hand[name, 1] + by_hand[name, 5]) / 2 for name in FEW["corruptions"]}
    assert value(result, "worst_corruption_accuracy") == pytest.approx(min(names.values()))
    assert result.forwards == 80 * 7
    for metric in result.metrics:
        assert metric.value is not None
        assert metric.ci_low is not None
        assert metric.ci_high is not None
        assert metric.ci_low <= metric.value <= metric.ci_high
        assert metric.ci_low < metric.ci_high


def test_a_brightness_threshold_falls_to_brightness_alone(tmp_path: Path) -> None:
    """Means of .45: brightness adds .05 to .3 and pushes them over .6 from severity 3 on; contrast keeps the mean."""
    images = np.full((40, 8, 8), round(0.47 * 255), dtype=np.uint8)
    images[:, ::2] = round(0.43 * 255)
    dark = samples_of(images, np.zeros(40, dtype=np.int64), ("dark", "light"))
    result = run(tmp_path, dark, Threshold(), corruptions=("brightness", "contrast"), severities=(1, 2, 3, 4, 5))
    assert value(result, "contrast_accuracy") == 1
    assert value(result, "brightness_accuracy") == pytest.approx(0.4)
    assert value(result, "worst_corruption_accuracy") == pytest.approx(0.4)
    assert [value(result, f"accuracy_at_severity_{s}") for s in (2, 3)] == [1, 0.5]
    titles = [finding.title for finding in result.findings]
    assert titles[0] == "Common corruptions cost 30.0 % of the model's correct predictions"
    assert titles[1] == "Under brightness the model loses more than half of its accuracy"


def test_a_model_that_ignores_its_input_loses_nothing(tmp_path: Path) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0, 0, 0]).expand(len(x), 4)

    result = run(tmp_path, toy_samples(40), Constant())
    assert value(result, "relative_corruption_error") == 0
    assert value(result, "corruption_accuracy") == 0.25
    assert [finding.severity for finding in result.findings] == ["info"]


def test_the_interval_counts_samples_not_their_copies() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(50) < 0.7
    copies = np.broadcast_to(one, (15, 5, 50))
    single, many = mean(one[None]), mean(copies)
    assert (many.value, many.low, many.high) == pytest.approx((single.value, single.low, single.high))
    hits = []
    for _ in range(300):  # samples differ in how hard they are; the interval must cover the mean all the same
        hardness = rng.beta(2, 1, 60)
        drawn = mean(rng.random((15, 5, 60)) < hardness)
        hits.append(drawn.low <= 2 / 3 <= drawn.high)
    assert 0.91 <= np.mean(hits) <= 0.985


def test_evidence_figures_and_progress_fit_together(tmp_path: Path, samples: Samples) -> None:
    progress = FakeProgress()
    context = FakeContext(tmp_path, "corruption", batch_size=17, progress=progress)
    result = Corruption.model_validate(FEW).run(toy_target(), samples, context)
    assert progress.done == 80 * 6
    recorded = context.read_evidence(result.evidence[0])
    assert recorded["predictions"].shape == (1, 3, 2, 80)
    assert recorded["predictions"].dtype == torch.uint8
    figures = {figure.id: figure for figure in result.figures}
    table, chart, gallery = figures["corruptions"], figures["by_group"], figures["gallery"]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["gaussian noise", "fog", "contrast"]
    assert isinstance(chart, Chart)
    assert [line.name for line in chart.lines] == ["noise", "weather", "digital"]
    assert isinstance(gallery, Gallery)
    assert len(gallery.items) == 3
    shown = context.read_evidence(result.evidence[1])
    assert shown["severity_5"].shape == (3, 1, 8, 8)
    assert {picture.tensor for picture in gallery.pictures} <= set(shown)
    cells = figures["cells"]
    assert isinstance(cells, Table)
    assert len(cells.rows) == 6
    assert any("approximated" not in text and "left out" in text for text in result.not_covered)


def test_batch_size_does_not_matter(tmp_path: Path, samples: Samples) -> None:
    whole, parts = run(tmp_path, samples), run(tmp_path, samples, batch_size=7)
    assert [m.value for m in whole.metrics] == pytest.approx([m.value for m in parts.metrics])


def test_verify_holds_then_fails_for_another_model_labels_number_or_file(tmp_path: Path, samples: Samples) -> None:
    check, context = Corruption.model_validate(FEW), FakeContext(tmp_path, "corruption")
    result = check.run(toy_target(), samples, context)

    def failing(target_module: nn.Module | None = None, data: Samples = samples, claimed: Result = result) -> list[str]:
        claims = check.verify(toy_target(target_module), data, claimed, context)
        return [claim.what for claim in claims if not claim.ok]

    assert failing() == []
    assert failing(small_cnn()) == [
        "the model predicts as recorded on clean images",
        "the model predicts as recorded on corrupted images",
    ]
    relabelled = samples_of(np.asarray(samples.inputs), (samples.labels + 1) % 4, samples.classes)
    assert failing(data=relabelled) == ["the corruptions were applied to the audited samples and labels"]
    forged = tuple(m.model_copy(update={"value": 0.99}) if m.name == "fog_accuracy" else m for m in result.metrics)
    lie = result.model_copy(update={"metrics": forged})
    assert failing(claimed=lie) == ["fog_accuracy follows from the recorded predictions"]


def test_predictions_made_up_in_the_evidence_are_noticed(tmp_path: Path, samples: Samples) -> None:
    check, context = Corruption.model_validate(FEW), FakeContext(tmp_path, "corruption")
    result = check.run(toy_target(), samples, context)
    tensors = context.read_evidence(result.evidence[0])
    tensors["predictions"][0, 1, 1] = tensors["labels"].to(torch.uint8)
    forged = context.evidence("predictions", tensors)
    claimed = result.model_copy(update={"evidence": (forged, *result.evidence[1:])})
    broken = [claim.what for claim in check.verify(toy_target(), samples, claimed, context) if not claim.ok]
    assert "the model predicts as recorded on corrupted images" in broken


def test_nan_and_inputs_that_are_no_images_are_errors(tmp_path: Path) -> None:
    class FailsOnNoise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.flatten(1).std(1, keepdim=True) > 0.09, float("nan"), 1.0).expand(-1, 4)

    flat = samples_of(np.full((6, 8, 8), 100, dtype=np.uint8), np.zeros(6, dtype=np.int64), ("a", "b", "c", "d"))
    with pytest.raises(ModelError, match="NaN or infinite"):
        run(tmp_path, flat, FailsOnNoise())

    def rows(raw: Any) -> Tensor:
        return torch.zeros(len(raw), 5)

    with pytest.raises(UnsupportedError, match=r"this check needs \(n, c, h, w\)"):
        Corruption().run(replace(toy_target(), encode=rows), flat, FakeContext(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corruptions": ["fogg"]}, "Did you mean 'fog'"),
        ({"severities": [0]}, "severities are 1 to 5"),
        ({"corruptions": []}, "at least 1"),
        ({"severity": 1}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Corruption.model_validate(fields)


def test_every_metric_is_described(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples, corruptions=tuple(CORRUPTIONS), limit=12)
    for metric in result.metrics:
        name = "accuracy_at_severity_S" if metric.name.startswith("accuracy_at") else metric.name
        assert name in Corruption.metrics
        assert metric.label
    assert any("frost" in text and "approximated" in text for text in result.not_covered)


def test_a_variant_is_measured_against_the_original(tmp_path: Path, samples: Samples) -> None:
    base = toy_target()
    check, context = Corruption.model_validate(FEW), FakeContext(tmp_path, "corruption", variant="variant")
    same = check.run(base.with_module(base.module, "same"), samples, context)
    assert value(same, "mce") == pytest.approx(1)
    other = base.with_module(small_cnn(), "other")
    result = check.run(other, samples, context)
    x, y = encoded(base, samples)
    streams = Streams.from_seed(0, torch.from_numpy(samples.ids))

    def errors(module: nn.Module, name: str) -> float:
        return sum(float((module(corrupt(x, name, s, streams)).argmax(1) != y).sum()) for s in (1, 5))

    by_hand = [errors(other.module, name) / errors(base.module, name) for name in FEW["corruptions"]]
    assert value(result, "mce") == pytest.approx(float(np.mean(by_hand)))
    metric = result.metric("mce")
    assert metric is not None
    assert metric.ci_low is not None
    assert metric.ci_high is not None
    assert metric.ci_low < float(np.mean(by_hand)) < metric.ci_high
    assert all(claim.ok for claim in check.verify(other, samples, result, context))
    assert check.run(base, samples, context).metric("mce") is None


def test_corruptions_that_the_original_never_fails_are_left_out_of_the_ratio() -> None:
    own, base = np.array([2.0, 5.0, 3.0]), np.array([1.0, 0.0, 6.0])
    assert float(relative_error(own, base)) == pytest.approx((2 + 0.5) / 2)
    assert np.isnan(relative_error(own, np.zeros(3)))
