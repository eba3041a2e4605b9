"""Evasion: counts against the closed form of a linear model, masking against broken and healthy ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.attacks.masking import Diagnosis
from auditorch.attacks.probes.flag import FlagName, flag
from auditorch.audit.checks.evasion import Evasion
from auditorch.audit.checks.evasion_findings import Sanity, findings
from auditorch.audit.checks.evasion_masking import full_protocol
from auditorch.audit.checks.evasion_measures import Measured
from auditorch.audit.samples import Samples
from auditorch.reports.record import Chart, Gallery, Metric, Result, Table
from pydantic import ValidationError
from torch import Tensor, nn

from .fakes import FakeContext, FakeProgress, linear_model, linf_optimum, samples_of, small_cnn, toy_samples, toy_target

EPS = (0.02, 0.06, 0.08, 0.1)


@pytest.fixture
def samples() -> Samples:
    """Smallest linf perturbations spread over 0..0.13."""
    return toy_samples(120, noise=0.04, contrast=0.14, spread=0.12)


def run(tmp_path: Path, samples: Samples, module: nn.Module | None = None, **fields: Any) -> Result:
    check = Evasion.model_validate(fields)
    return check.run(toy_target(module, len(samples.classes)), samples, FakeContext(tmp_path, "evasion"))


def metric(result: Result, name: str) -> Metric:
    found = result.metric(name)
    assert found is not None, name
    return found


def value(result: Result, name: str) -> float:
    number = metric(result, name).value
    assert number is not None, name
    return number


def share_beyond(samples: Samples, eps: float) -> float:
    return float((linf_optimum(samples) > eps).double().mean())


@pytest.mark.parametrize(
    "attack", [{"attack": "pgd", "loss": "margin"}, {"attack": "apgd", "loss": "margin", "steps": 30}]
)
def test_robust_accuracy_is_the_closed_form_at_every_radius(tmp_path: Path, attack: dict[str, Any]) -> None:
    samples = toy_samples(120, k=2, noise=0.04, contrast=0.14, spread=0.12)  # of two classes there is no wrong rival
    result = run(tmp_path, samples, eps=EPS[1], curve=(EPS[0], *EPS[2:]), **attack)
    expected = [share_beyond(samples, eps) for eps in EPS]
    assert 0.05 < expected[3] < expected[1] < 0.95
    assert value(result, "robust_accuracy") == pytest.approx(expected[1])
    for eps, share in zip(EPS, expected, strict=True):
        if eps != EPS[1]:
            assert value(result, f"robust_accuracy_at_{eps}") == pytest.approx(share)
    clean = value(result, "clean_accuracy")
    assert value(result, "attack_success_rate") == pytest.approx(1 - expected[1] / clean)
    curve = next(figure for figure in result.figures if isinstance(figure, Chart) and figure.id == "curve")
    assert curve.lines[0].x == (0.0, *EPS)
    assert curve.lines[0].y == pytest.approx((clean, *expected))


def test_survivors_only_are_attacked_at_the_next_radius(tmp_path: Path, samples: Samples) -> None:
    """A sample broken at the first radius costs nothing at the second."""
    options: dict[str, Any] = {"attack": "pgd", "steps": 5, "random_start": False}
    one = run(tmp_path, samples, eps=0.3, **options)
    two = run(tmp_path, samples, eps=0.3, curve=("0.29",), **options)
    assert value(one, "robust_accuracy") == value(two, "robust_accuracy") == 0
    assert value(two, "queries_per_sample") == value(run(tmp_path, samples, eps=0.29, **options), "queries_per_sample")


def test_smallest_perturbation_attack_draws_the_curve_from_one_run(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bisect:
        """Walks to the nearest other quadrant in closed form: the optimum of the linear model plus a hair."""

        minimal = True
        access = "labels"
        calls = 0

        def __call__(
            self, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: object, *, generator: object = None
        ) -> Tensor:
            Bisect.calls += 1
            logits: Tensor = model(x)
            rival = logits.scatter(1, y[:, None], float("-inf")).argmax(1)
            weight = next(linear_model().parameters()).detach()
            gap = (logits.gather(1, y[:, None]) - logits.gather(1, rival[:, None]))[:, 0]
            step = (gap / 40 * 1.001)[:, None] * (weight[rival] - weight[y]).sign()
            return (x + step.view_as(x)).clamp(0, 1)

    monkeypatch.setattr("auditorch.audit.checks.evasion_options.attack_class", lambda name: Bisect)
    monkeypatch.setattr("auditorch.audit.checks.evasion.attack_class", lambda name: Bisect)
    monkeypatch.setattr("auditorch.audit.checks.evasion.build_attack", lambda *args, **kwargs: Bisect())
    result = run(tmp_path, samples, attack="bisect", eps=EPS[1], curve=(EPS[0], *EPS[2:]))
    assert Bisect.calls == 1
    assert value(result, "robust_accuracy") == pytest.approx(share_beyond(samples, EPS[1]), abs=0.01)
    for eps in (EPS[0], *EPS[2:]):
        assert value(result, f"robust_accuracy_at_{eps}") == pytest.approx(share_beyond(samples, eps), abs=0.01)
    optimum = linf_optimum(samples).numpy()
    fallen = optimum[(optimum > 0) & (optimum <= EPS[1])]
    assert value(result, "median_distortion") == pytest.approx(np.median(fallen), rel=0.01)
    assert value(result, "mean_distortion") == pytest.approx(fallen.mean(), rel=0.01)


def test_by_class_adds_up(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples, eps=0.07, attack="pgd")
    table = next(figure for figure in result.figures if isinstance(figure, Table) and figure.id == "by_class")
    assert [row[1] for row in table.rows] == [30] * 4
    robust = [row[3] for row in table.rows]
    assert sum(share * 30 for share in robust if isinstance(share, float)) / 120 == pytest.approx(
        value(result, "robust_accuracy")
    )


def test_gallery_shows_the_smallest_changes_over_all_classes(tmp_path: Path, samples: Samples) -> None:
    context = FakeContext(tmp_path, "evasion")
    result = Evasion.model_validate({"eps": 0.12, "attack": "pgd"}).run(toy_target(), samples, context)
    gallery = next(figure for figure in result.figures if isinstance(figure, Gallery))
    evidence = next(item for item in result.evidence if item.path == gallery.evidence)
    tensors = context.read_evidence(evidence)
    numbers = [int(item.sample_id.removeprefix("image-")) for item in gallery.items]
    assert len(numbers) == 8
    assert sorted(samples.labels[numbers].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(tensors["clean"], torch.from_numpy(samples.inputs[np.array(numbers)] / np.float32(255))[:, None])
    before = [item.captions[0].rsplit(" ", 2)[0] for item in gallery.items]
    after = [item.captions[1].rsplit(" ", 2)[0] for item in gallery.items]
    assert before == [samples.classes[samples.labels[i]] for i in numbers]
    predicted = toy_target().module(tensors["adversarial"]).argmax(1).tolist()
    assert after == [samples.classes[c] for c in predicted]
    assert all(a != b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("targeted", ["next", "least_likely", "random"])
def test_targets_are_never_the_label_and_are_reached(tmp_path: Path, samples: Samples, targeted: str) -> None:
    context = FakeContext(tmp_path, "evasion")
    check = Evasion.model_validate({"eps": 0.15, "attack": "pgd", "targeted": targeted})
    result = check.run(toy_target(), samples, context)
    tensors = context.read_evidence(result.evidence[0])
    goal, labels, rows = tensors["goal"], tensors["labels"], tensors["rows"]
    assert (goal != labels).all()
    assert len(rows) > 20
    assert torch.equal(tensors["adv_logits"].argmax(1), goal[rows])
    logits = tensors["clean_logits"]
    match targeted:
        case "next":
            assert torch.equal(goal, (labels + 1) % 4)
        case "least_likely":
            sure = logits.argmin(1) != labels
            assert torch.equal(goal[sure], logits.argmin(1)[sure])
        case _:
            assert len(((goal - labels) % 4).unique()) == 3
    untargeted = run(tmp_path / "u", samples, eps=0.15, attack="pgd")
    assert value(result, "robust_accuracy") >= value(untargeted, "robust_accuracy")
    assert all(claim.ok for claim in check.verify(toy_target(), samples, result, context))


def test_results_do_not_depend_on_batch_size(tmp_path: Path, samples: Samples) -> None:
    progress = FakeProgress()
    contexts = FakeContext(tmp_path, "a", batch_size=7, progress=progress), FakeContext(tmp_path, "b", batch_size=64)
    check = Evasion.model_validate({"eps": 0.07, "attack": "pgd", "curve": [0.05, 0.09], "steps": 10})
    first, second = (check.run(toy_target(small_cnn()), samples, context) for context in contexts)
    assert [m.value for m in first.metrics] == pytest.approx([m.value for m in second.metrics], abs=1e-6)
    assert progress.done == pytest.approx(progress.started[0][1])


def test_limit_keeps_all_classes_of_sorted_data(tmp_path: Path, samples: Samples) -> None:
    by_label = samples.select(np.argsort(samples.labels, kind="stable"))
    result = run(tmp_path, by_label, eps=0.07, attack="fgsm", limit=20)
    table = next(figure for figure in result.figures if isinstance(figure, Table))
    assert [row[1] for row in table.rows] == [5] * 4
    assert metric(result, "robust_accuracy").n == 20


def test_verify_holds_and_fails_for_what_was_changed(tmp_path: Path, samples: Samples) -> None:
    context = FakeContext(tmp_path, "evasion")
    check = Evasion.model_validate({"eps": 0.06, "attack": "pgd", "curve": [0.08]})
    result = check.run(toy_target(), samples, context)

    def failed(result: Result = result, data: Samples = samples, module: nn.Module | None = None) -> list[str]:
        return [c.what for c in check.verify(toy_target(module), data, result, context) if not c.ok]

    assert failed() == []
    assert "the model predicts as recorded" in failed(module=small_cnn())
    assert failed(data=samples_of(np.asarray(samples.inputs), (samples.labels + 1) % 4, samples.classes)) == [
        "the attack ran on the audited samples and labels"
    ]
    forged = tuple(m.model_copy(update={"value": 0.99}) if m.name == "robust_accuracy" else m for m in result.metrics)
    assert failed(result.model_copy(update={"metrics": forged})) == [
        "robust_accuracy follows from the adversarial inputs"
    ]

    tensors = context.read_evidence(result.evidence[0])
    outside = {**tensors, "x_adv": tensors["x_adv"] + 0.01}
    moved = context.evidence("adversarial", outside)
    assert "adversarial inputs lie in ball and bounds" in failed(result.model_copy(update={"evidence": (moved,)}))
    harmless = {
        **tensors,
        "x_adv": torch.from_numpy(samples.inputs[tensors["rows"].numpy()] / np.float32(255))[:, None],
    }
    unmoved = context.evidence("adversarial", harmless)
    assert "the model errs on the adversarial inputs" in failed(result.model_copy(update={"evidence": (unmoved,)}))


def masking(result: Result) -> list[str]:
    prefix = "Possible gradient masking: "
    return [f.title.removeprefix(prefix) for f in result.findings if f.title.startswith(prefix)]


class Rounded(nn.Module):
    """Quantises its input, with the gradient that rounding has: none."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.model, self.levels = linear_model(), levels

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * self.levels).round() / self.levels)


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_zero_gradients_are_found(tmp_path: Path, samples: Samples, attack: str) -> None:
    result = run(tmp_path, samples, Rounded(16), eps=0.1, curve=(0.6,), attack=attack, steps=10)
    assert "zero gradients" in masking(result)
    assert "a boundless attack fails" in masking(result)


def test_a_single_step_that_beats_the_attack_is_found_and_counted(tmp_path: Path, samples: Samples) -> None:
    weak = {"attack": "pgd", "steps": 2, "step_size": 0.001, "random_start": False}
    result = run(tmp_path, samples, eps=0.1, **weak)
    assert masking(result) == []
    assert "The attack may be too weak: a single step beats iterative attacks" in [f.title for f in result.findings]
    assert value(result, "robust_accuracy") == pytest.approx(share_beyond(samples, 0.1), abs=0.02)


def test_a_doubt_is_raised_once(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples, Rounded(16), eps=0.1, curve=(0.6,), attack="pgd", steps=5)
    titles = [finding.title.split(": ")[-1] for finding in result.findings]
    assert "a boundless attack fails" in titles
    assert len(titles) == len(set(titles))


def test_diagnostics_can_be_left_out_and_are_counted(tmp_path: Path, samples: Samples) -> None:
    options: dict[str, Any] = {"attack": "pgd", "steps": 5, "eps": 0.1, "limit": 20}
    without = run(tmp_path, samples, Rounded(16), diagnostics=False, **options)
    diagnosed = run(tmp_path, samples, Rounded(16), **options)
    assert "zero gradients" not in masking(without)
    assert "zero gradients" in masking(diagnosed)
    assert diagnosed.forwards > without.forwards
    assert diagnosed.backwards > without.backwards
    assert diagnosed.metrics == without.metrics


def test_auto_gives_way_to_the_full_protocol_on_a_masked_model(tmp_path: Path, samples: Samples) -> None:
    options: dict[str, Any] = {"eps": 0.13, "limit": 16}
    trusting = run(tmp_path, samples, Rounded(16), attack="apgd", diagnostics=False, **options)
    context = FakeContext(tmp_path, "evasion")
    check = Evasion.model_validate(options)
    result = check.run(toy_target(Rounded(16)), samples, context)
    assert value(result, "robust_accuracy") < value(trusting, "robust_accuracy") - 0.2
    assert "when autoattack may change them" in result.summary
    assert [w for w in result.warnings if "zero gradients" in w and "autoattack ran in place of auto" in w]
    assert result.parameters["options"]["version"] == "standard"
    assert all(claim.ok for claim in check.verify(toy_target(Rounded(16)), samples, result, context))


def test_auto_needs_no_gradients_where_there_are_none(tmp_path: Path, samples: Samples) -> None:
    model = linear_model()

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.detach())

    result = run(tmp_path, samples, Detached(), eps=0.1, limit=20)
    assert "no gradient" in masking(result)
    assert "square may change them" in result.summary
    assert value(result, "gradients_per_sample") == 0
    assert value(result, "attack_success_rate") > 0.5


def test_auto_stays_on_a_healthy_model(tmp_path: Path, samples: Samples) -> None:
    result = run(tmp_path, samples, eps=EPS[2])
    assert "when auto may change them" in result.summary
    assert not [w for w in result.warnings if "masking" in w]
    assert value(result, "robust_accuracy") == pytest.approx(share_beyond(samples, EPS[2]), abs=0.02)


@pytest.mark.parametrize(
    ("flags", "targeted", "expected"),
    [
        (("zero_gradient",), False, ["autoattack standard"]),
        (("randomised", "probabilities"), False, ["autoattack rand"]),
        (("no_gradient", "probabilities"), False, ["square"]),
        (("zero_gradient",), True, ["apgd", "apgd_t", "square"]),
    ],
)
def test_the_full_protocol_follows_the_flags(flags: tuple[FlagName, ...], targeted: bool, expected: list[str]) -> None:
    diagnosis = Diagnosis(tuple(flag(name, 1.0, 1.0, "") for name in flags), samples=1, forwards=1, backwards=1)
    protocol = full_protocol(diagnosis, targeted=targeted)
    assert [f"{name} {getattr(attack, 'version', '')}".strip() for name, attack in protocol.items()] == expected


@pytest.mark.parametrize(("later", "suspected"), [(np.inf, True), (0.2, False)])
def test_success_that_does_not_grow_is_found(later: float, suspected: bool) -> None:
    radius = np.where(np.arange(100) < 50, 0.05, later)
    measured = Measured(np.arange(100) % 4, np.full(100, True), radius, radius, "linf", 0.1, (0.1, 0.25))
    found = findings(measured, Sanity(), 4, 1.0, "pgd", (), targeted=False)
    assert any("success does not grow with eps" in finding.title for finding in found) == suspected


@pytest.mark.parametrize("module", [linear_model(), small_cnn()], ids=["linear", "cnn"])
@pytest.mark.parametrize("attack", ["pgd", "apgd", "fgsm"])
def test_healthy_models_are_not_suspected(tmp_path: Path, samples: Samples, module: nn.Module, attack: str) -> None:
    labels = toy_target(module).logits(samples.inputs[np.arange(120)]).argmax(1).numpy()
    own = samples_of(np.asarray(samples.inputs), labels, samples.classes)
    assert masking(run(tmp_path, own, module, eps=0.05, curve=(0.1, 0.5), attack=attack)) == []


@pytest.mark.parametrize(("eps", "severity"), [(0.001, "info"), (0.06, "medium"), (0.3, "critical")])
def test_severity_follows_what_falls(tmp_path: Path, samples: Samples, eps: float, severity: str) -> None:
    result = run(tmp_path, samples, eps=eps, attack="pgd")
    assert result.findings[0].severity == severity
    assert "NISTAML.022" in result.findings[0].standards


def test_a_model_that_is_always_wrong_has_no_success_rate(tmp_path: Path) -> None:
    samples = toy_samples(60)
    wrong = samples_of(np.asarray(samples.inputs), (samples.labels + 1) % 4, samples.classes)
    result = run(tmp_path, wrong, linear_model(scale=400), eps=0.05, attack="pgd")
    assert value(result, "robust_accuracy") == value(result, "clean_accuracy") == 0
    assert metric(result, "attack_success_rate").value is None
    assert any("no sample right" in warning for warning in result.warnings)
    assert metric(result, "mean_distortion").value is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attack": "pdg"}, "unknown attack 'pdg'. Did you mean 'pgd'?"),
        ({"attack": "fgsm", "steps": 5}, "attack 'fgsm' has no option 'steps'"),
        ({"attack": "pgd", "step_sise": 0.1}, "has no option 'step_sise'. Did you mean 'step_size'?"),
        ({"attack": "pgd", "limt": 5}, "has no option 'limt'. Did you mean 'limit'?"),
        ({"attack": "pgd", "norm": "l0"}, "attack 'pgd' knows the norms linf, l2, l1, not l0"),
        ({"attack": "pgd", "loss": "hinge"}, "option 'loss' of attack 'pgd'"),
        ({"attack": "pgd", "restarts": 3, "random_start": False}, "restarts of PGD need random_start"),
        ({"eps": "8/0"}, "write a number or a fraction"),
        ({"eps": 0}, "a radius must be above 0"),
        ({"curve": [0.1, 0]}, "a radius must be above 0"),
        ({"targeted": "sometimes"}, "least_likely"),
    ],
)
def test_bad_options_are_refused_with_the_remedy(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Evasion.model_validate(fields)
    assert message in str(caught.value)


def test_options_reach_the_attack_and_defaults_follow_the_norm() -> None:
    check = Evasion.model_validate({"attack": "apgd", "rho": 0.5, "steps": 7, "eps": "8/255"})
    attack = check.build()
    assert (getattr(attack, "rho", None), getattr(attack, "steps", None)) == (0.5, 7)
    assert check.eps == pytest.approx(8 / 255)
    assert Evasion.model_validate({"norm": "l2"}).eps == 0.5
    assert check.required() == {"gradients"}
    assert Evasion.model_validate({"attack": "hopskipjump_art"}).required() == {"labels"}


def test_every_metric_is_described(tmp_path: Path, samples: Samples) -> None:
    for metric in run(tmp_path, samples, eps=0.05, curve=(0.07,), attack="pgd").metrics:
        name = "robust_accuracy_at_EPS" if metric.name.startswith("robust_accuracy_at_") else metric.name
        assert name in Evasion.metrics
        assert metric.label


def test_a_label_only_attack_is_told_apart_and_never_below_the_closed_form(tmp_path: Path) -> None:
    samples = toy_samples(12, noise=0.04, contrast=0.14, spread=0.12)
    curve = {"eps": 0.08, "curve": (0.04, 0.12)}
    result = run(tmp_path, samples, attack="hopskipjump_art", max_queries=300, **curve)
    assert "NISTAML.025" in result.standards
    assert value(result, "gradients_per_sample") == 0
    assert result.backwards == 0
    assert value(result, "attack_success_rate") > 0
    for name, eps in (("robust_accuracy", 0.08), ("robust_accuracy_at_0.04", 0.04), ("robust_accuracy_at_0.12", 0.12)):
        assert value(result, name) >= share_beyond(samples, eps) - 1e-9
