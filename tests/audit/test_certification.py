"""The certification check on models whose certificates are known, and the transfer check beside its base."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import Threat
from auditorch.audit.checks import certification_bounds
from auditorch.audit.checks.base import Check, encoded
from auditorch.audit.checks.certification import Certification
from auditorch.audit.checks.transfer import Transfer
from auditorch.audit.target import Target
from auditorch.defenses.smoothing import Smoothed
from auditorch.defenses.training import TrainingConfig, fit
from auditorch.reports.record import Result
from pydantic import ValidationError
from torch import nn

from .fakes import FakeContext, linear_model, linf_optimum, small_cnn, toy_samples, toy_target

SAMPLES = toy_samples(40, contrast=0.1, spread=0.09)
EPS = 0.02


def run(check: Check, target: Target, root: Path, samples: object = SAMPLES) -> Result:
    return check.run(target, samples, FakeContext(root))  # pyright: ignore[reportArgumentType]


def value(result: Result, name: str) -> float:
    metric = result.metric(name)
    assert metric is not None
    assert metric.value is not None
    return metric.value


def failed(check: Check, target: Target, result: Result, root: Path) -> list[str]:
    return [claim.what for claim in check.verify(target, SAMPLES, result, FakeContext(root)) if not claim.ok]


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
def test_bounds_of_a_linear_model_are_its_optimum(method: str, tmp_path: Path) -> None:
    options = {"method": method, "eps": EPS, "curve": [0.01, 0.04], "limit": None, "steps": 8}
    check = Certification.model_validate(options)
    result = run(check, toy_target(), tmp_path)
    optimum = linf_optimum(SAMPLES)
    for name, eps in (
        ("certified_accuracy", EPS),
        ("certified_accuracy_at_0.01", 0.01),
        ("certified_accuracy_at_0.04", 0.04),
    ):
        assert value(result, name) == pytest.approx(float((optimum > eps).float().mean()))
    assert 0.2 < value(result, "certified_accuracy") < 0.9
    assert value(result, "empirical_robust_accuracy") == value(result, "certified_accuracy"), "both are exact here"
    assert value(result, "contradicted") == 0
    assert failed(check, toy_target(), result, tmp_path) == []


def test_what_bounds_prove_is_never_more_than_what_attacks_leave(tmp_path: Path) -> None:
    module = small_cnn()
    fit(module, *encoded(toy_target(), toy_samples(120, seed=1)), config=TrainingConfig(epochs=8, lr=0.02))
    target = toy_target(module.eval())
    proven = {}
    for method in ("ibp", "crown"):
        result = run(Certification.model_validate({"method": method, "eps": 0.01, "limit": 12}), target, tmp_path)
        proven[method] = value(result, "certified_accuracy")
        assert proven[method] <= value(result, "empirical_robust_accuracy") <= value(result, "clean_accuracy")
        assert value(result, "contradicted") == 0
    assert proven["crown"] >= proven["ibp"]
    assert proven["crown"] > 0.3


def test_smoothing_of_a_linear_model_stays_below_its_margins(tmp_path: Path) -> None:
    """Between two classes of a linear model the smoothed border is the model's own; with four it lies further in."""
    samples = toy_samples(40, k=2, contrast=0.1, spread=0.09)
    target = toy_target(linear_model(2), k=2)
    check = Certification(method="smoothing", norm="l2", eps=0.15, sigma=0.3, n=1000, limit=None)
    result = check.run(target, samples, FakeContext(tmp_path))
    x, y = encoded(target, samples)
    with torch.no_grad():
        logits = target.module(x)
    weight = target.module.get_parameter("1.weight").detach()
    truth = (logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]) / (
        weight[0] - weight[1]
    ).norm()
    assert value(result, "certified_accuracy") <= float((truth > 0.15).float().mean())
    assert value(result, "certified_accuracy") >= float((truth > 0.15 + 0.12).float().mean())
    assert value(result, "mean_certified_radius") <= float(truth.clamp_min(0).mean())
    assert value(result, "certified_accuracy") <= value(result, "empirical_robust_accuracy")
    assert value(result, "contradicted") == 0
    assert value(result, "empirical_robust_accuracy") < value(result, "clean_accuracy"), "the attack does something"
    claims = list(check.verify(target, samples, result, FakeContext(tmp_path)))
    assert [claim for claim in claims if not claim.ok] == []
    chart = result.figures[0]
    assert chart.kind == "chart"
    assert chart.lines[0].y[0] == value(result, "clean_accuracy")
    assert list(chart.lines[0].y) == sorted(chart.lines[0].y, reverse=True)  # pyright: ignore


def test_a_smoothed_variant_brings_its_sigma(tmp_path: Path) -> None:
    smoothed = replace(toy_target(), module=Smoothed(linear_model(), 0.2, copies=4).eval())
    result = run(Certification(norm="l2", eps=0.1, n=100, limit=8), smoothed, tmp_path)
    assert "sigma 0.2" in result.title
    explicit = Certification(method="smoothing", norm="l2", eps=0.1, n=100, limit=8, sigma=0.2)
    again = run(explicit, toy_target(), tmp_path)
    assert value(again, "certified_accuracy") == value(result, "certified_accuracy"), "certificates are of the body"
    with pytest.raises(ValueError, match="norm: l2"):
        run(Certification(eps=0.1), smoothed, tmp_path)
    with pytest.raises(ValueError, match=r"smoothed with sigma 0\.2"):
        run(Certification(norm="l2", eps=0.1, sigma=0.5), smoothed, tmp_path)
    with pytest.raises(ValueError, match="needs sigma"):
        run(Certification(method="smoothing", norm="l2", eps=0.1), toy_target(), tmp_path)


@pytest.mark.parametrize("method", ["crown", "smoothing"])
def test_forged_certificates_are_caught(method: str, tmp_path: Path) -> None:
    options = {"method": method, "norm": "l2", "eps": 0.2, "limit": 12, "n": 100}
    check = Certification.model_validate({**options, "sigma": 0.2} if method == "smoothing" else options)
    target = toy_target()
    result = run(check, target, tmp_path)
    context = FakeContext(tmp_path)
    tensors = context.read_evidence(result.evidence[0])
    assert failed(check, target, result, tmp_path) == []
    if method == "crown":
        assert value(result, "certified_accuracy") < 1
        tensors["proven"] = torch.ones_like(tensors["proven"])
    else:
        tensors["votes"] = torch.full_like(tensors["votes"], 100)
    forged = result.model_copy(update={"evidence": (context.evidence("certificates", tensors),)})
    wrong = failed(check, target, forged, tmp_path)
    assert any("proven again" in what or "counted again" in what for what in wrong)


def test_a_contradicted_certificate_is_a_critical_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def anything(module: nn.Module, x: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        return torch.ones(len(x), dtype=torch.bool)

    monkeypatch.setattr(certification_bounds, "certified", anything)
    result = run(Certification(method="ibp", eps=0.04, limit=None), toy_target(), tmp_path)
    assert value(result, "contradicted") > 0.1
    assert [finding.severity for finding in result.findings] == ["critical"]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "smoothing"},
        {"method": "crown", "sigma": 0.5},
        {"eps": 0},
        {"curve": [0.0]},
        {"norm": "l0"},
        {"alpha": 1.0},
        {"method": "deepz"},
    ],
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Certification.model_validate(options)


def test_transfer_is_from_the_base(tmp_path: Path) -> None:
    """The base reads the bright quadrant; a variant that reads the dark one is not fooled, a copy is."""
    base = toy_target()
    check = Transfer(eps=0.05, steps=10)
    own = run(check, base, tmp_path)
    copy = run(check, base.with_module(linear_model(scale=10.0), "1" * 64), tmp_path)
    x, y = encoded(base, SAMPLES)
    x_adv = PGD(steps=10, early_stop=False)(base.module, x, y, Threat("linf", 0.05))
    with torch.no_grad():
        expected = float(((base.module(x).argmax(1) == y) & (base.module(x_adv).argmax(1) == y)).float().mean())
    assert value(own, "transfer_robust_accuracy") == pytest.approx(expected, abs=0.05)
    assert value(copy, "transfer_rate") == 1
    assert value(copy, "transfer_robust_accuracy") == value(own, "transfer_robust_accuracy")
    assert [finding.severity for finding in copy.findings] == ["medium"]

    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(4)[torch.zeros(len(x), dtype=torch.int64)] + 0 * x.sum()

    deaf = base.with_module(Constant(), "2" * 64)
    result = run(check, deaf, tmp_path)
    assert deaf.base is base
    assert value(result, "transfer_rate") == 0
    assert value(result, "transfer_robust_accuracy") == value(result, "clean_accuracy") == 0.25
    assert result.findings == ()
    assert failed(check, deaf, result, tmp_path) == []


def test_forged_transfer_is_caught(tmp_path: Path) -> None:
    base = toy_target()
    variant = base.with_module(linear_model(scale=10.0), "1" * 64)
    check, context = Transfer(eps=0.05, steps=5), FakeContext(tmp_path)
    result = run(check, variant, tmp_path)
    tensors = context.read_evidence(result.evidence[0])
    x, _ = encoded(base, SAMPLES)
    tensors["x_adv"] = (x + 0.2).clamp(0, 1)
    forged = result.model_copy(update={"evidence": (context.evidence("adversarial", tensors),)})
    assert "adversarial inputs lie in ball and bounds" in failed(check, variant, forged, tmp_path)
