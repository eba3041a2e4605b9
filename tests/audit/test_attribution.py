"""The attribution check: its claims, its findings, and what makes verification fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.attacks.threat import Norm, Threat
from auditorch.audit.attribution.counting import counted
from auditorch.audit.attribution.findings import findings
from auditorch.audit.attribution.methods import METHODS
from auditorch.audit.attribution.scene import noise_of_size
from auditorch.audit.attribution.scores import mean_metric
from auditorch.audit.checks.attribution import Attribution, attack_of, drawn
from auditorch.audit.checks.base import Claim
from auditorch.audit.errors import ModelError, UnsupportedError
from auditorch.audit.samples import Samples
from auditorch.reports.record import Chart, Gallery, Metric, Result, Table
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from .fakes import FakeContext, linear_model, small_cnn, toy_samples, toy_target

DEFAULT = ("integrated_gradients", "saliency", "grad_cam", "occlusion")


def run(root: Path, module: nn.Module | None = None, data: Samples | None = None, **fields: Any) -> Result:
    check = Attribution.model_validate({"samples": 8, "steps": 8, "eps": 0.05, **fields})
    return check.run(toy_target(module), data or toy_samples(24), FakeContext(root, "attribution"))


def again(root: Path, result: Result, module: nn.Module | None = None, **fields: Any) -> list[Claim]:
    check = Attribution.model_validate({"samples": 8, "steps": 8, "eps": 0.05, **fields})
    return list(check.verify(toy_target(module), toy_samples(24), result, FakeContext(root, "attribution")))


def value(result: Result, name: str) -> float:
    found = result.metric(name)
    assert found is not None, name
    assert found.value is not None, name
    return found.value


def figure(result: Result, name: str) -> Any:
    return next(figure for figure in result.figures if figure.id == name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(root: Path) -> Result:
    """Every default method on a small network."""
    return run(root, small_cnn())


def test_every_score_stands_beside_its_control_with_an_interval(result: Result) -> None:
    assert result.status == "ok"
    assert result.parameters["methods"] == list(DEFAULT)
    assert result.parameters["layer"] == "0"
    for method in DEFAULT:
        for score in ("deletion_auc", "insertion_auc", "infidelity", "sensitivity_max", "top_overlap_attacked"):
            for name in (f"{method}_{score}", f"{method}_{score}_random"):
                metric = result.metric(name)
                assert metric is not None, name
                assert metric.value is not None
                assert metric.ci_low is not None
                assert metric.ci_high is not None
                assert metric.ci_low <= metric.value <= metric.ci_high
                assert metric.n == 8
    assert {m.name for m in result.metrics} == {name for name in Attribution.metrics if name.startswith(DEFAULT)}
    assert result.forwards > result.backwards > 0


def test_gain_is_the_paired_difference_to_the_control(result: Result) -> None:
    for method in DEFAULT:
        gap = value(result, f"{method}_deletion_auc_random") - value(result, f"{method}_deletion_auc")
        assert value(result, f"{method}_deletion_gain") == pytest.approx(gap)
        gap = value(result, f"{method}_insertion_auc") - value(result, f"{method}_insertion_auc_random")
        assert value(result, f"{method}_insertion_gain") == pytest.approx(gap)


def test_figures_show_table_curves_and_galleries(root: Path, result: Result) -> None:
    table, chart = figure(result, "scores"), figure(result, "deletion")
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows[:2]] == ["Integrated Gradients", "Integrated Gradients: random control"]
    assert table.rows[0][1] == pytest.approx(value(result, "integrated_gradients_deletion_auc"), abs=1e-3)
    assert isinstance(chart, Chart)
    assert [line.dashed for line in chart.lines] == [False] * 4 + [True] * 2  # two resolutions, two controls
    for line in chart.lines:
        assert len(line.low) == len(line.y) == len(line.high) == 17
        assert all(
            (low or 0) <= (y or 0) <= (high or 0) for low, y, high in zip(line.low, line.y, line.high, strict=True)
        )
    gallery = figure(result, "gallery-grad_cam")
    assert isinstance(gallery, Gallery)
    tensors = load_file(root / gallery.evidence)
    assert all(len(tensors[picture.tensor]) == len(gallery.items) == 4 for picture in gallery.pictures)
    assert "predicted" in gallery.items[0].captions[0]


def test_the_linear_model_is_explained_and_beats_random(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.parameters["methods"] == ["integrated_gradients", "saliency", "occlusion"]
    assert "Grad-CAM left out" in result.warnings[0]
    assert value(result, "integrated_gradients_completeness_gap") < 1e-4
    assert value(result, "integrated_gradients_infidelity") < 1e-4
    assert value(result, "saliency_sensitivity_max") == 0
    for method in ("integrated_gradients", "occlusion"):
        gain = result.metric(f"{method}_deletion_gain")
        assert gain is not None
        assert gain.ci_low is not None
        assert gain.ci_low > 0
    assert "names pixels that matter" in result.summary


def test_grad_cam_by_name_needs_a_convolution(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="convolutional layer"):
        run(tmp_path, method="grad_cam")


def test_results_are_deterministic_and_do_not_depend_on_order_or_batch(tmp_path: Path) -> None:
    samples, fields = toy_samples(24), {"methods": ("saliency", "occlusion"), "samples": 8, "steps": 8, "eps": 0.05}
    first = run(tmp_path / "a", small_cnn(), samples, **fields)
    assert run(tmp_path / "b", small_cnn(), samples, **fields).model_dump_json() == first.model_dump_json()
    shuffled = samples.select(np.random.default_rng(0).permutation(24))
    other = Attribution.model_validate(fields).run(
        toy_target(small_cnn()), shuffled, FakeContext(tmp_path / "c", "attribution", batch_size=5)
    )
    for metric in first.metrics:
        if "attacked" in metric.name:  # an attack along signs of gradients may magnify another rounding
            continue
        same = other.metric(metric.name)
        assert same is not None
        assert same.value == pytest.approx(metric.value, abs=1e-3), metric.name


def test_verify_confirms_an_honest_result(root: Path, result: Result) -> None:
    claims = again(root, result, small_cnn())
    assert all(claim.ok for claim in claims), [claim for claim in claims if not claim.ok]
    assert len(claims) > len(result.metrics)


def test_verify_exposes_another_model(root: Path, result: Result) -> None:
    failed = {claim.what for claim in again(root, result, small_cnn(seed=1)) if not claim.ok}
    assert "Saliency maps are reproduced" in failed
    assert "Saliency deletion and insertion are reproduced" in failed


def test_verify_exposes_a_changed_metric(root: Path, result: Result) -> None:
    index = next(i for i, m in enumerate(result.metrics) if m.name == "saliency_deletion_auc")
    metrics = list(result.metrics)
    metrics[index] = metrics[index].model_copy(update={"value": 0.01})
    claims = again(root, result.model_copy(update={"metrics": tuple(metrics)}), small_cnn())
    assert [c.what for c in claims if not c.ok] == ["saliency_deletion_auc follows from the recorded scores"]


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("x", "the explained inputs are audited samples"),
        ("x_adv", "attacked inputs lie in ball and bounds"),
        ("predicted", "the model predicts as recorded (predicted)"),
        ("occlusion.attacked", "Occlusion maps are reproduced"),
        ("ids", "the explained samples are among the audited ones"),
    ],
)
def test_verify_exposes_changed_evidence(tmp_path: Path, key: str, what: str) -> None:
    """The evidence is rewritten together with its hash, as a careful forger would."""
    result = run(tmp_path, small_cnn(), method="occlusion")
    tensors = load_file(tmp_path / result.evidence[0].path)
    tensors[key] = tensors[key] + (1 if key in ("predicted", "ids") else 0.2)
    if key == "ids":
        tensors[key] += 1000
    forged = FakeContext(tmp_path, "attribution").evidence("attributions", tensors, "maps")
    claims = again(
        tmp_path, result.model_copy(update={"evidence": (forged, result.evidence[1])}), small_cnn(), method="occlusion"
    )
    assert what in [claim.what for claim in claims if not claim.ok]


class Constant(nn.Module):
    """Looks at nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.flatten(1)[:, :4] + torch.tensor([2.0, 1.0, 0.0, 0.0])


def test_a_model_that_looks_at_nothing_is_said_to_be_unexplained(tmp_path: Path) -> None:
    result = run(tmp_path, Constant(), method="saliency")
    metric = result.metric("saliency_infidelity")
    assert metric is not None
    assert metric.value is None
    assert value(result, "saliency_deletion_gain") == pytest.approx(0)
    assert any("No better than random" in finding.title for finding in result.findings)
    assert "No method" in result.summary


class Narrow(nn.Module):
    """Has memory for forty rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear_model()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 40:
            raise torch.OutOfMemoryError("no more memory")
        return self.inner(x)


def test_batches_shrink_until_memory_suffices(tmp_path: Path) -> None:
    result = run(tmp_path / "a", Narrow(), method="integrated_gradients")
    plenty = run(tmp_path / "b", method="integrated_gradients")
    for metric in plenty.metrics:
        if "attacked" not in metric.name:
            assert value(result, metric.name) == pytest.approx(metric.value, abs=1e-4)


class Undefined(nn.Module):
    """Gives NaN for some images."""

    def forward(self, x: Tensor) -> Tensor:
        return linear_model()(x).log()[:, :4] - torch.tensor([3.5, 0, 0, 0]) + (x[:, 0, :1, 0] - 0.4).sqrt()


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"NaN .* image-"):
        run(tmp_path, Undefined(), method="saliency")


class Frame(nn.Module):
    """Reads the outer pixels only."""

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = x[:, 0, 0].mean(1), x[:, 0, -1].mean(1)
        return 20 * torch.stack([top - bottom, bottom - top, top - 1, bottom - 1], 1)


def test_a_model_that_reads_the_border_is_noticed(tmp_path: Path) -> None:
    result = run(tmp_path, Frame(), method="integrated_gradients")
    assert value(result, "integrated_gradients_border_share") > 0.99
    assert any("border" in finding.title for finding in result.findings)
    linear = run(tmp_path, method="integrated_gradients")
    assert not any("border" in finding.title for finding in linear.findings)


def crafted(**values: tuple[float, float, float]) -> Iterator[Metric]:
    """Harmless metrics of Saliency, some replaced by (value, low, high)."""
    harmless = {
        "deletion_gain": (0.3, 0.2, 0.4),
        "randomized_similarity": (0.0, -0.1, 0.1),
        "top_overlap_attacked": (0.6, 0.5, 0.7),
        "top_overlap_noise": (0.8, 0.7, 0.9),
        "border_share": (0.3, 0.2, 0.4),
        "completeness_gap": (0.01, 0.0, 0.02),
    }
    for name, (mean, low, high) in (harmless | values).items():
        yield Metric(name=f"saliency_{name}", value=mean, ci_low=low, ci_high=high, n=9)


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({}, None),
        ({"deletion_gain": (-0.2, -0.3, -0.1)}, "No better than random"),
        ({"deletion_gain": (0.1, -0.1, 0.3)}, "No better than random"),
        ({"randomized_similarity": (0.8, 0.7, 0.9)}, "Explanations that hardly depend on what the model learned"),
        ({"randomized_similarity": (0.6, 0.4, 0.8)}, None),
        ({"top_overlap_attacked": (0.2, 0.1, 0.3)}, "Explanations point elsewhere after a small attack"),
        ({"top_overlap_attacked": (0.2, 0.1, 0.45)}, None),
        ({"border_share": (0.7, 0.6, 0.8)}, "The model may be reading the border"),
        ({"completeness_gap": (0.2, 0.1, 0.3)}, "Computed with too few steps"),
    ],
)
def test_findings_follow_the_intervals(values: dict[str, tuple[float, float, float]], title: str | None) -> None:
    metrics = {metric.name: metric for metric in crafted(**values)}
    found = list(findings(("saliency",), metrics, 0.36, 2.0))
    assert len(found) == (title is not None)
    if title is not None:
        assert found[0].title.startswith(title)
        assert found[0].title.endswith(": Saliency")
        assert ("worse than random" in found[0].detail) == (values.get("deletion_gain", (0, 0, 0))[2] < 0)


def test_one_finding_names_every_method_it_concerns() -> None:
    metrics = {metric.name: metric for metric in crafted(deletion_gain=(0.1, -0.1, 0.3))}
    metrics |= {name.replace("saliency", "occlusion"): metric for name, metric in metrics.items()}
    (found,) = findings(("saliency", "occlusion"), metrics, 0.36, 2.0)
    assert found.title.endswith(": Saliency, Occlusion")


def test_a_mean_leaves_undefined_samples_out() -> None:
    metric = mean_metric("m", torch.tensor([1.0, torch.nan, 3.0]), "M", True, 0)
    assert metric.value == 2
    assert metric.n == 2
    assert metric.method == "bootstrap"
    single = mean_metric("m", torch.tensor([1.0]), "M", True, 0)
    assert single.value == 1
    assert single.ci_low is None


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 2.0)])
def test_the_noise_is_as_large_as_the_threat_allows(norm: Norm, eps: float) -> None:
    threat, x = Threat(norm, eps), torch.full((4, 1, 8, 8), 0.5)
    size = threat.distance(noise_of_size(x, threat, 0, torch.arange(4)), x)
    assert (size <= eps * 1.0001).all()
    assert (size > 0.85 * eps).all()


def test_samples_are_drawn_by_id_not_by_place() -> None:
    ids = np.arange(100, 150)
    chosen = ids[drawn(ids, 10, seed=3)]
    turned = ids[::-1].copy()
    assert set(chosen) == set(turned[drawn(turned, 10, seed=3)])
    assert len(set(chosen)) == 10
    assert set(chosen) != set(ids[drawn(ids, 10, seed=4)])


def test_attacks_take_the_steps_they_have() -> None:
    assert getattr(attack_of("pgd", 7), "steps", None) == 7
    assert not hasattr(attack_of("fgsm", 7), "steps")


def test_counting_counts_samples_both_ways() -> None:
    model, x = small_cnn(), torch.rand(5, 1, 8, 8, requires_grad=True)
    with counted(model) as count:
        model(x).sum().backward()
        model(x[:2])
    model(x)
    assert (count.forwards, count.backwards) == (7, 5)
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "saliency", "methods": ["saliency"]}, "not both"),
        ({"eps": "eight"}, "fraction such as 8/255"),
        ({"attack": "pdg"}, "Did you mean 'pgd'"),
        ({"method": "gradcam"}, "grad_cam"),
        ({"samples": 1}, "greater than or equal to 2"),
    ],
)
def test_bad_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Attribution.model_validate(fields)


@pytest.mark.parametrize("fields", [{"norm": "l2", "eps": 0.5}, {"attack": "fgsm"}, {"baseline": "blur"}])
def test_other_threats_and_baselines_run_and_verify(tmp_path: Path, fields: dict[str, Any]) -> None:
    result = run(tmp_path, small_cnn(), method="input_x_gradient", **fields)
    assert all(claim.ok for claim in again(tmp_path, result, small_cnn(), method="input_x_gradient", **fields))
    assert 0 <= value(result, "input_x_gradient_top_overlap_attacked") < 1


def test_all_methods_can_be_compared(tmp_path: Path) -> None:
    result = run(tmp_path, small_cnn(), methods=METHODS, samples=4, gallery=0)
    assert {row[0] for row in figure(result, "scores").rows} >= {"DeepLift", "GradientShap", "Grad-CAM"}
    assert not any(isinstance(found, Gallery) for found in result.figures)
    assert all(claim.ok for claim in again(tmp_path, result, small_cnn(), methods=METHODS, samples=4, gallery=0))
