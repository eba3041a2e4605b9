"""Evasion by one who may only ask: transfer from a surrogate, label-only attacks, and the curves against effort."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from auditorch.audit.checks.evasion import Evasion
from auditorch.audit.errors import ModelError
from auditorch.audit.samples import Samples
from auditorch.reports.record import Chart, Metric, Result
from pydantic import ValidationError
from safetensors.torch import save_file

from .fakes import FakeContext, linear_model, linf_optimum, toy_samples, toy_target

FACTORY = """
from torch import nn

def build(k=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, k))
"""


@pytest.fixture
def samples() -> Samples:
    return toy_samples(24, noise=0.04, contrast=0.14, spread=0.12)


def run(tmp_path: Path, samples: Samples, **fields: Any) -> tuple[Evasion, Result, FakeContext]:
    check = Evasion.model_validate({"eps": 0.08, **fields})
    context = FakeContext(tmp_path, "evasion", sources={"pool.npz": toy_samples(40, seed=5)})
    return check, check.run(toy_target(), samples, context), context


def metric(result: Result, name: str) -> Metric:
    found = result.metric(name)
    assert found is not None
    return found


def effort(result: Result) -> Chart | None:
    return next((figure for figure in result.figures if isinstance(figure, Chart) and figure.id == "effort"), None)


def test_a_surrogate_equal_to_the_model_finds_what_there_is(tmp_path: Path, samples: Samples) -> None:
    (tmp_path / "twin.py").write_text(FACTORY)
    save_file(linear_model().state_dict(), tmp_path / "twin.safetensors")
    surrogate = {"factory": "twin.py:build", "weights": "twin.safetensors"}
    check, result, context = run(tmp_path, samples, attack="transfer", surrogate=surrogate)
    expected = float((linf_optimum(samples) > 0.08).double().mean())
    robust = metric(result, "robust_accuracy").value
    assert robust is not None
    assert expected <= robust <= expected + 0.1
    assert metric(result, "surrogate_agreement").value == 1.0
    assert metric(result, "surrogate_queries").value == 0
    assert result.backwards == 0
    assert "NISTAML.025" in result.standards
    assert check.files() == ("twin.safetensors", "twin.py")
    assert check.required() == {"labels"}
    assert all(claim.ok for claim in check.verify(toy_target(), samples, result, context))
    chart = effort(result)
    assert chart is not None
    assert chart.x_label == "queries per sample"
    assert chart.lines[0].y[-1] == pytest.approx(robust)


def test_an_extracted_surrogate_is_counted_and_breaks_inputs(tmp_path: Path, samples: Samples) -> None:
    surrogate = {"extract": 400, "data": "pool.npz"}
    check, result, context = run(tmp_path, samples, attack="transfer", surrogate=surrogate, eps=0.2)
    assert metric(result, "surrogate_queries").value == 400
    agreement, success = (metric(result, name).value for name in ("surrogate_agreement", "attack_success_rate"))
    assert agreement is not None
    assert success is not None
    assert agreement > 0.8
    assert success > 0.5
    assert result.forwards >= 400 + 2 * 24
    assert check.files() == ("pool.npz",)
    assert all(claim.ok for claim in check.verify(toy_target(), samples, result, context))


def test_a_surrogate_that_does_not_fit_is_said(tmp_path: Path, samples: Samples) -> None:
    (tmp_path / "twin.py").write_text(FACTORY)
    surrogate = {"factory": "twin.py:build", "arguments": {"k": 3}}
    with pytest.raises(ModelError, match="one logit for each of the 4 classes"):
        run(tmp_path, samples, attack="transfer", surrogate=surrogate)


def test_hopskipjump_draws_both_curves_from_one_run_and_reaches_targets_from_starts(
    tmp_path: Path, samples: Samples
) -> None:
    options: dict[str, Any] = {"attack": "hopskipjump", "norm": "l2", "eps": 0.5, "queries": 400, "limit": 8}
    check, result, context = run(tmp_path, samples, **options)
    curve = next(figure for figure in result.figures if isinstance(figure, Chart) and figure.id == "curve")
    assert len(curve.lines[0].x) == 41
    chart = effort(result)
    assert chart is not None
    assert chart.lines[0].x[0] == 0
    assert chart.lines[0].x[-1] <= 400
    assert chart.lines[0].y[0] == metric(result, "clean_accuracy").value
    assert chart.lines[0].y[-1] == metric(result, "robust_accuracy").value
    drops = np.diff(np.array(chart.lines[0].y, dtype=np.float64))
    assert (drops <= 0).all()
    claims = list(check.verify(toy_target(), samples, result, context))
    assert all(claim.ok for claim in claims)
    assert any("steps or queries" in claim.what for claim in claims)

    tensors = context.read_evidence(result.evidence[0])
    forged = context.evidence("adversarial", {**tensors, "spent": tensors["spent"] + 1})
    moved = result.model_copy(update={"evidence": (forged, *result.evidence[1:])})
    failed = [claim.what for claim in check.verify(toy_target(), samples, moved, context) if not claim.ok]
    assert failed == ["the curve against steps or queries follows from what each sample took"]

    reached = run(tmp_path, samples, **{**options, "eps": 2.0}, targeted="next", starts="pool.npz")[1]
    assert metric(reached, "attack_success_rate").value == 1.0


def test_steps_are_counted_over_the_radii_up_to_the_one_that_matters(tmp_path: Path, samples: Samples) -> None:
    options: dict[str, Any] = {"attack": "pgd", "steps": 8, "random_start": False, "diagnostics": False}
    single = effort(run(tmp_path, samples, **options)[1])
    double = effort(run(tmp_path, samples, **options, curve=[0.04, 0.2])[1])
    assert single is not None
    assert double is not None
    assert single.x_label == "gradient steps per sample"
    assert single.lines[0].x[-1] == 9  # the clean input and eight steps
    assert double.lines[0].x[-1] == 18  # at 0.04 and at 0.08, not at 0.2
    assert effort(run(tmp_path, samples, attack="fgsm", diagnostics=False)[1]) is None


@pytest.mark.parametrize(("attack", "unit"), [("fmn", "gradient steps"), ("autoattack", "forward passes")])
def test_smallest_perturbations_and_the_protocol_are_drawn_too(
    attack: str, unit: str, tmp_path: Path, samples: Samples
) -> None:
    options = {"steps": 8} if attack == "fmn" else {"steps": 8, "queries": 10}
    check, result, context = run(tmp_path, samples, attack=attack, diagnostics=False, **options)
    chart = effort(result)
    assert chart is not None
    assert chart.x_label == f"{unit} per sample"
    assert chart.lines[0].y[0] == metric(result, "clean_accuracy").value
    assert chart.lines[0].y[-1] == metric(result, "robust_accuracy").value
    assert len(set(chart.lines[0].y)) > 1
    assert all(claim.ok for claim in check.verify(toy_target(), samples, result, context))


def test_the_default_attack_is_drawn_against_its_passes(tmp_path: Path, samples: Samples) -> None:
    check, result, context = run(tmp_path, samples, diagnostics=False, focus_queries=50)
    chart = effort(result)
    assert chart is not None
    assert chart.x_label == "forward passes per sample"
    assert chart.lines[0].y[0] == metric(result, "clean_accuracy").value
    assert chart.lines[0].y[-1] == metric(result, "robust_accuracy").value
    claims = list(check.verify(toy_target(), samples, result, context))
    assert all(claim.ok for claim in claims)
    assert any("steps or queries" in claim.what for claim in claims)

    relabelled = chart.model_copy(update={"x_label": "gradient steps per epoch"})
    raised = chart.lines[0].model_copy(update={"y": (*chart.lines[0].y[:-1], 0.9)})
    for forged in (relabelled, chart.model_copy(update={"lines": (raised,)})):
        figures = tuple(forged if figure == chart else figure for figure in result.figures)
        claims = check.verify(toy_target(), samples, result.model_copy(update={"figures": figures}), context)
        assert [claim.what for claim in claims if not claim.ok] == [
            "the curve against steps or queries follows from what each sample took"
        ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attack": "transfer"}, "needs a surrogate"),
        ({"attack": "pgd", "surrogate": {"extract": 100}}, "uses no surrogate"),
        ({"attack": "pgd", "starts": "pool.npz"}, "takes no starts"),
        ({"attack": "transfer", "surrogate": {}}, "exactly one of factory and extract"),
        ({"attack": "transfer", "surrogate": {"extract": 100, "weights": "w"}}, "belong to a factory"),
        ({"attack": "transfer", "surrogate": {"factory": "a.py:b", "data": "x.npz"}}, "data belongs to extract"),
    ],
)
def test_options_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Evasion.model_validate(fields)
