"""Performance: every number against scikit-learn, the intervals against resampling by hand."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.audit.checks.base import encoded
from auditorch.audit.checks.classification import calibration, class_counts, macro_auc, resampled_counts
from auditorch.audit.checks.performance import Performance
from auditorch.audit.checks.performance_measures import Measured
from auditorch.audit.errors import ModelError
from auditorch.audit.samples import Samples
from auditorch.reports.record import Chart, Matrix, Metric, Result, Table
from numpy.typing import NDArray
from sklearn import metrics as sk
from torch import nn

from .fakes import FakeContext, FakeProgress, linear_model, samples_of, small_cnn, toy_samples, toy_target


@pytest.fixture
def samples() -> Samples:
    """Hard enough that the best model errs."""
    return toy_samples(400, contrast=0.08, noise=0.3)


def run(tmp_path: Path, samples: Samples, module: nn.Module | None = None, **fields: object) -> Result:
    target = toy_target(module, k=len(samples.classes))
    return Performance.model_validate(fields).run(target, samples, FakeContext(tmp_path, "performance"))


def value(result: Result, name: str) -> float:
    metric = result.metric(name)
    assert metric is not None
    assert metric.value is not None
    return metric.value


def brier_by_hand(y: NDArray[np.int64], p: NDArray[np.float64]) -> float:
    return sum(sk.mean_squared_error(y == c, p[:, c]) for c in range(p.shape[1]))


def recalls(y: NDArray[np.int64], y_hat: NDArray[np.int64], classes: Iterable[int]) -> list[float]:
    return [float((y_hat[y == c] == c).mean()) for c in classes]


def test_every_metric_equals_scikit_learn(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples)
    target, y = toy_target(), samples.labels
    p = torch.softmax(target.module(encoded(target, samples)[0]).double(), 1).detach().numpy()
    y_hat = p.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(y, y_hat),
        "balanced_accuracy": sk.balanced_accuracy_score(y, y_hat),
        "top_2_accuracy": sk.top_k_accuracy_score(y, p, k=2),
        "top_3_accuracy": sk.top_k_accuracy_score(y, p, k=3),
        "roc_auc_ovr": sk.roc_auc_score(y, p, multi_class="ovr"),
        "log_loss": sk.log_loss(y, p),
        "brier": brier_by_hand(y, p),
        "worst_class_recall": min(recalls(y, y_hat, range(4))),
    }
    for average in ("macro", "weighted"):
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            expected[f"{name}_{average}"] = score(y, y_hat, average=average)
    assert 0.4 < expected["accuracy"] < 0.95
    for name, number in expected.items():
        assert value(result, name) == pytest.approx(number, abs=1e-9), name
    assert {metric.name for metric in result.metrics} == {*expected, "ece"}


def test_intervals_agree_with_resampling_and_hold_the_value(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples)
    target, y = toy_target(), samples.labels
    p = torch.softmax(target.module(encoded(target, samples)[0]).double(), 1).detach().numpy()
    rng = np.random.default_rng(9)
    draws = [rng.integers(0, len(y), len(y)) for _ in range(120)]
    by_hand = {
        "f1_macro": [sk.f1_score(y[i], p[i].argmax(1), average="macro") for i in draws],
        "roc_auc_ovr": [sk.roc_auc_score(y[i], p[i], multi_class="ovr") for i in draws],
        "log_loss": [sk.log_loss(y[i], p[i]) for i in draws],
        "brier": [brier_by_hand(y[i], p[i]) for i in draws],
    }
    for name, values in by_hand.items():
        metric = result.metric(name)
        assert metric is not None
        assert metric.ci_low == pytest.approx(np.quantile(values, 0.025), rel=0.03), name
        assert metric.ci_high == pytest.approx(np.quantile(values, 0.975), rel=0.03), name
    for metric in result.metrics:
        assert metric.value is not None
        assert metric.ci_low is not None
        assert metric.ci_high is not None
        assert metric.ci_low < metric.value < metric.ci_high, metric.name


def test_calibration_error_is_the_definition() -> None:
    confidence = np.array([0.62, 0.65, 0.91, 0.99, 0.9])
    correct = np.array([True, False, True, True, False])
    bins = calibration(confidence, correct, bins=10)
    # (.6,.7]: two samples, accuracy .5, confidence .635; (.8,.9]: one wrong at .9; (.9,1]: two right at .95.
    assert bins.counts.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 1, 2]
    assert bins.ece == pytest.approx((2 * 0.135 + 0.9 + 2 * 0.05) / 5)


def test_calibration_interval_covers_an_honest_model() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 3000)
    y = np.array([rng.choice(3, p=row) for row in p])
    ece = next(m for m in Measured(np.log(p), y, ("a", "b", "c"), 15, 500, 0).metrics if m.name == "ece")
    assert ece.value is not None
    assert ece.value < 0.04
    assert ece.ci_low is not None
    assert ece.ci_low < 0.01


def test_resampled_counts_keep_the_table_apart() -> None:
    table = np.array([[40, 0, 10], [5, 20, 0], [0, 0, 25]])
    counts = resampled_counts(table, resamples=3000)
    exact = class_counts(table)
    for drawn, truth in (
        (counts.hits, exact.hits),
        (counts.support, exact.support),
        (counts.predicted, exact.predicted),
    ):
        assert drawn.mean(0) == pytest.approx(truth, rel=0.03)
    assert (counts.hits <= np.minimum(counts.support, counts.predicted)).all()


def test_two_classes_and_a_macro_auc_of_one() -> None:
    y = np.array([0, 1] * 20)
    p = np.where(y == 1, 0.8, 0.3)
    auc, (low, high) = macro_auc(np.column_stack([1 - p, p]), y)
    assert (auc, high) == (1, 1)
    assert low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)  # Wilson's lower end for 20 of 20


def test_absent_class_is_left_out_and_said(tmp_path: Path, samples: Samples) -> None:
    index = np.flatnonzero(samples.labels != 2)
    result = run(tmp_path, samples.select(index))
    y, logits = samples.labels[index], toy_target().logits(samples.inputs[index]).numpy()
    y_hat = logits.argmax(1)
    assert (y_hat == 2).any()
    present = recalls(y, y_hat, (0, 1, 3))
    assert value(result, "balanced_accuracy") == pytest.approx(sum(present) / 3)
    assert value(result, "f1_macro") == pytest.approx(sk.f1_score(y, y_hat, average="macro", labels=[0, 1, 3]))
    assert any("bottom left" in warning and "No samples" in warning for warning in result.warnings)
    table = next(figure for figure in result.figures if isinstance(figure, Table) and figure.id == "by_class")
    assert table.rows[2] == ("bottom left", 0, None, None, None, None, None)


def test_a_single_class_has_no_auc(tmp_path: Path) -> None:
    full = toy_samples(40)
    result = run(tmp_path, full.select(np.flatnonzero(full.labels == 0)))
    auc = result.metric("roc_auc_ovr")
    assert auc is not None
    assert auc.value is None
    assert any("ROC AUC is undefined" in warning for warning in result.warnings)


def test_figures_add_up_to_the_samples(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples)
    figures = {figure.id: figure for figure in result.figures}
    matrix, reliability, bars = figures["confusion"], figures["reliability"], figures["confidence_counts"]
    assert isinstance(matrix, Matrix)
    assert np.array_equal(np.array(matrix.values).sum(1), np.bincount(samples.labels))
    assert isinstance(bars, Chart)
    assert sum(count or 0 for count in bars.lines[0].y) == len(samples)
    assert isinstance(reliability, Chart)
    for low, y, high in zip(reliability.lines[0].low, reliability.lines[0].y, reliability.lines[0].high, strict=True):
        assert low is not None
        assert y is not None
        assert high is not None
        assert low <= y <= high


def titles(result: Result) -> str:
    return " | ".join(finding.title for finding in result.findings)


def test_overconfidence_is_found_and_honesty_is_not_blamed(tmp_path: Path, samples: Samples) -> None:
    assert "overconfident" in titles(run(tmp_path, samples, linear_model(scale=400)))
    # Noise 0.3 per pixel: the Bayes rule's logits are contrast / (0.3^2) * 16 * mean = 14.2 * mean of the quadrant.
    assert "confident" not in titles(run(tmp_path, samples, linear_model(scale=14.2)))


def test_a_class_left_behind_is_found(tmp_path: Path, samples: Samples) -> None:
    model = linear_model()
    assert "far less often" not in titles(run(tmp_path, samples, model))
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.bias[1] -= 2
    assert "Class top right is recognised far less often" in titles(run(tmp_path, samples, model))


def test_guessing_and_imbalance_are_found(tmp_path: Path, samples: Samples) -> None:
    keep = np.flatnonzero((samples.labels == 0) | (np.arange(400) < 80))
    constant = linear_model(scale=0.0)
    found = titles(run(tmp_path, samples.select(keep), constant))
    assert "No better than always naming" in found
    assert "very different size" in found
    assert "No better" not in titles(run(tmp_path, samples))


def test_nan_logits_are_an_error_that_names_samples(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 4), float("nan"))

    with pytest.raises(ModelError, match=r"8 of 8 samples: image-0, image-1"):
        run(tmp_path, toy_samples(8), Broken())


def test_verify_holds_then_fails_for_another_model_labels_or_number(tmp_path: Path, samples: Samples) -> None:
    check, context = Performance(), FakeContext(tmp_path, "performance")
    result = check.run(toy_target(), samples, context)
    assert all(claim.ok for claim in check.verify(toy_target(), samples, result, context))

    other = list(check.verify(toy_target(small_cnn()), samples, result, context))
    assert [claim.what for claim in other if not claim.ok] == ["the model predicts as recorded"]

    relabelled = samples_of(np.asarray(samples.inputs), (samples.labels + 1) % 4, samples.classes)
    assert not next(iter(check.verify(toy_target(), relabelled, result, context))).ok

    forged = tuple(m.model_copy(update={"value": 0.99}) if m.name == "accuracy" else m for m in result.metrics)
    claims = check.verify(toy_target(), samples, result.model_copy(update={"metrics": forged}), context)
    assert [claim.what for claim in claims if not claim.ok] == ["accuracy follows from the recorded scores"]


def test_batch_size_does_not_matter_and_progress_adds_up(tmp_path: Path, samples: Samples) -> None:
    progress = FakeProgress()
    whole, parts = FakeContext(tmp_path, "a"), FakeContext(tmp_path, "b", batch_size=7, progress=progress)
    first, second = (Performance().run(toy_target(), samples, context) for context in (whole, parts))
    assert [m.value for m in first.metrics] == pytest.approx([m.value for m in second.metrics], abs=1e-6)
    assert progress.done == len(samples)


def test_every_metric_is_described(tmp_path: Path, samples: Samples) -> None:
    def described(metric: Metric) -> bool:
        name = "top_K_accuracy" if metric.name.startswith("top_") else metric.name
        return name in Performance.metrics and metric.label != ""

    assert all(described(metric) for metric in run(tmp_path, samples).metrics)
