"""Membership: a model that memorised is caught, one that never saw the members is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.membership import Membership
from auditorch.audit.checks.membership_exposure import Exposure, Group
from auditorch.audit.checks.membership_findings import findings
from auditorch.audit.errors import DataError, ModelError, UnsupportedError
from auditorch.audit.samples import Samples
from auditorch.privacy.shadow.fresh import continued, fresh
from auditorch.privacy.shadow.training import ShadowConfig, fit
from auditorch.reports.record import Chart, Metric, Result, Table
from pydantic import ValidationError
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn

from .fakes import FakeContext, encode, samples_of, toy_samples, toy_target


def members(n: int = 200) -> Samples:
    return toy_samples(n, seed=1, contrast=0.05, noise=0.3)


def nonmembers(n: int = 200) -> Samples:
    return toy_samples(n, seed=2, contrast=0.05, noise=0.3, start=1000)


class Memory(nn.Module):
    """Remembers images: the logit of a class falls with the squared distance to the nearest one remembered of it."""

    def __init__(self, data: Samples) -> None:
        super().__init__()
        self.images = encode(data.inputs[np.arange(len(data))]).flatten(1)
        self.own = torch.nn.functional.one_hot(torch.from_numpy(data.labels), 4).bool()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distances = ((x.flatten(1)[:, None] - self.images) ** 2).sum(2)
        return -distances[:, :, None].masked_fill(~self.own, float("inf")).amin(1)


LEAKY = Memory(members())
UNRELATED = Memory(toy_samples(200, seed=3, contrast=0.05, noise=0.3))


def run(
    tmp_path: Path, module: nn.Module, train: Samples | None = None, test: Samples | None = None, **fields: Any
) -> Result:
    context = FakeContext(tmp_path, "membership", sources={"train.npz": train or members()})
    check = Membership.model_validate({"train": "train.npz", **fields})
    return check.run(toy_target(module), test or nonmembers(), context)


def metric(result: Result, name: str) -> Metric:
    found = result.metric(name)
    assert found is not None, name
    return found


def interval(result: Result, name: str) -> tuple[float, float]:
    found = metric(result, name)
    assert found.ci_low is not None
    assert found.ci_high is not None
    return found.ci_low, found.ci_high


@pytest.mark.parametrize("attack", ["loss", "confidence", "entropy", "margin"])
def test_a_model_that_memorised_is_caught(tmp_path: Path, attack: str) -> None:
    result = run(tmp_path, LEAKY, attack=attack)
    assert metric(result, "member_accuracy").value == 1
    assert interval(result, "auc")[0] > 0.6
    assert interval(result, "advantage")[0] > 0.1
    assert interval(result, "balanced_accuracy")[0] > 0.52
    assert interval(result, "generalization_gap")[0] > 0.2
    assert result.findings[0].severity in ("medium", "high")
    assert "NISTAML.033" in result.findings[0].standards


def test_a_model_that_never_saw_the_members_is_not_accused(tmp_path: Path) -> None:
    result = run(tmp_path, UNRELATED)
    for name, chance in (("auc", 0.5), ("balanced_accuracy", 0.5), ("tpr_at_fpr_0.01", 0.01), ("advantage", 0.0)):
        low, high = interval(result, name)
        assert low <= chance <= high, name
    assert [finding.severity for finding in result.findings] == ["info"]
    assert "no proof of privacy" in result.findings[0].detail


def test_auc_equals_scikit_learn_on_the_recorded_scores(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, "membership", sources={"train.npz": members()})
    result = Membership(train="train.npz").run(toy_target(LEAKY), nonmembers(150), context)
    tensors = context.read_evidence(result.evidence[0])
    assert int(tensors["member"].sum()) == 200
    assert metric(result, "auc").value == pytest.approx(roc_auc_score(tensors["member"], tensors["scores"]))
    assert metric(result, "auc").n == 350
    threshold = tensors["scores"][~tensors["member"]].max()  # 1 % of 150 is one: scores above the second highest
    at = metric(result, "tpr_at_fpr_0.01")
    second = tensors["scores"][~tensors["member"]].sort(descending=True).values[1]
    assert at.value == pytest.approx(float((tensors["scores"][tensors["member"]] > second).double().mean()))
    assert at.n == 200
    above_all = float((tensors["scores"][tensors["member"]] > threshold).double().mean())
    assert metric(result, "tpr_at_fpr_0.001").value == pytest.approx(above_all)


def test_rates_that_the_numbers_cannot_resolve_are_said(tmp_path: Path) -> None:
    warnings = run(tmp_path, LEAKY).warnings
    assert any("rests on the 2 highest of 200" in warning for warning in warnings)
    assert any(
        "cannot be resolved: it needs at least 1000 non-members, there are 200" in warning for warning in warnings
    )
    assert run(tmp_path, LEAKY, fpr=(0.1,)).warnings == ()


def exposure(shift: float, share: float, seed: int) -> Exposure:
    """Scores of 2000 members and 1000 non-members, a share of the members shifted."""
    rng = np.random.default_rng(seed)
    y, names = np.zeros(2000, dtype=np.int64), [str(i) for i in range(2000)]
    scores = rng.normal(0, 1, 2000) + shift * (rng.uniform(size=2000) < share)
    right = np.full(2000, True)
    others = Group(rng.normal(0, 1, 1000), y[:1000], right[:1000], names[:1000])
    return Exposure(Group(scores, y, right, names), others, (0.01, 0.001), seed)


def test_records_that_stand_out_are_found_and_luck_is_not() -> None:
    leaks = [next(findings(exposure(8.0, 0.05, seed))).title for seed in range(20)]
    assert all("near certainty" in title for title in leaks)
    clean = [next(findings(exposure(0.0, 0.0, seed))).severity for seed in range(60)]
    assert clean.count("info") >= 56


def test_overlap_is_found_left_out_and_reported(tmp_path: Path) -> None:
    train, test = members(), nonmembers(100)
    images = np.concatenate([np.asarray(test.inputs), np.asarray(train.inputs)[:5]])
    mixed = samples_of(images, np.concatenate([test.labels, train.labels[:5]]), test.classes, start=1000)
    result = run(tmp_path, LEAKY, test=mixed)
    assert metric(result, "nonmember_accuracy").n == 100
    finding = result.findings[-1]
    assert finding.title == "5 of 105 held-out records are also in the training set"
    assert finding.severity == "high"
    assert "image-1100" in finding.detail
    assert metric(result, "auc").value == pytest.approx(metric(run(tmp_path, LEAKY, test=test), "auc").value or 0)


def test_overlap_counts_even_with_members_that_the_limit_leaves_out(tmp_path: Path) -> None:
    train, test = members(), nonmembers(50)
    images = np.concatenate([np.asarray(test.inputs), np.asarray(train.inputs)[1:2]])
    mixed = samples_of(images, np.concatenate([test.labels, train.labels[1:2]]), test.classes)
    result = run(tmp_path, LEAKY, test=mixed, limit=40)
    assert "1 of 51 held-out records" in result.findings[-1].title
    assert (metric(result, "member_accuracy").n, metric(result, "nonmember_accuracy").n) == (40, 40)


def test_training_data_given_as_non_members_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 200 non-members are in the training set"):
        run(tmp_path, LEAKY, test=members())


def test_non_members_may_be_named(tmp_path: Path) -> None:
    sources = {"train.npz": members(), "holdout.npz": nonmembers(60)}
    context = FakeContext(tmp_path, "membership", sources=sources)
    check = Membership(train="train.npz", nonmembers="holdout.npz")
    assert check.files() == ("train.npz", "holdout.npz")
    result = check.run(toy_target(LEAKY), members(), context)
    assert metric(result, "nonmember_accuracy").n == 60


def test_figures_say_who_is_exposed(tmp_path: Path) -> None:
    result = run(tmp_path, LEAKY)
    figures = {figure.id: figure for figure in result.figures}
    curve, exposed, by_class = figures["roc"], figures["most_exposed"], figures["by_class"]
    assert isinstance(curve, Chart)
    assert (curve.x_scale, curve.y_scale, curve.diagonal) == ("log", "log", True)
    assert all(x > 0 for x in curve.lines[0].x)
    assert (curve.lines[0].x[-1], curve.lines[0].y[-1]) == (1, 1)
    rates = figures["rates"]
    assert isinstance(rates, Table)
    assert [row[5:] for row in rates.rows] == [(100, 2000), (1000, 20000)]
    assert rates.rows[0][1] == metric(result, "tpr_at_fpr_0.01").value
    assert isinstance(exposed, Table)
    scores = [row[2] for row in exposed.rows]
    assert scores == sorted(scores, key=lambda score: -float(score or 0))
    assert all(str(row[0]).startswith("image-") for row in exposed.rows)
    assert isinstance(by_class, Table)
    assert sum(int(row[1] or 0) for row in by_class.rows) == 200
    shares = figures["distributions"]
    assert isinstance(shares, Chart)
    assert all(sum(y or 0 for y in line.y) == pytest.approx(1) for line in shares.lines)


def test_verify_holds_and_fails_for_another_model_or_training_set_or_number(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, "membership", sources={"train.npz": members()})
    check = Membership(train="train.npz")
    result = check.run(toy_target(LEAKY), nonmembers(), context)

    def failed(result: Result = result, module: nn.Module | None = None, ctx: FakeContext = context) -> list[str]:
        target = toy_target(module or LEAKY)
        return [claim.what for claim in check.verify(target, nonmembers(), result, ctx) if not claim.ok]

    assert failed() == []
    assert failed(module=UNRELATED) == ["the model answers as recorded"]
    other = FakeContext(tmp_path, "membership", sources={"train.npz": members(120)})
    assert failed(ctx=other) == ["the scores belong to these members and non-members"]
    forged = tuple(m.model_copy(update={"value": 0.5}) if m.name == "auc" else m for m in result.metrics)
    assert failed(result.model_copy(update={"metrics": forged})) == ["auc follows from the scores"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "train"),
        ({"train": "a", "attack": "lyra"}, "loss"),
        ({"train": "a", "fpr": [0]}, "greater than 0"),
        ({"train": "a", "shadows": 8}, "shadows: not used by the loss attack"),
        ({"train": "a", "attack": "rmia", "variance": "fixed"}, "variance: not used by the rmia attack"),
        ({"train": "a", "attack": "shokri", "flip": True, "online": False}, "flip, online: not used"),
        ({"train": "a", "attack": "lira", "shadows": 5}, "multiple of 2"),
        ({"train": "a", "start": "base"}, "start: not used by the loss attack"),
        ({"train": "a", "attack": "lira", "start": "random", "new_head": True}, "random weights have none"),
        ({"train": "a", "attack": "lira", "start": "random", "scope": "head"}, "random weights have none"),
        ({"train": "a", "attack": "lira", "start": "base", "lora_rank": 2}, "only used with scope lora"),
        ({"train": "a", "scope": "head"}, "scope: not used by the loss attack"),
    ],
)
def test_bad_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Membership.model_validate(fields)
    assert message in str(caught.value)


def test_every_metric_is_described(tmp_path: Path) -> None:
    for found in run(tmp_path, LEAKY, fpr=(0.1, 0.0001)).metrics:
        name = "tpr_at_fpr_RATE" if found.name.startswith("tpr_at_fpr_0.") else found.name
        assert name in Membership.metrics, found.name
        assert found.label


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


def overfitted(data: Samples, seed: int = 0) -> nn.Module:
    """Trained until it knows its records by heart."""
    x = encode(data.inputs[np.arange(len(data))])
    config = ShadowConfig(epochs=60, batch_size=16, lr=1e-2, seed=seed)
    model = fresh(network(), seed)
    fit([model], x, torch.from_numpy(data.labels), [torch.arange(len(data))], config)
    return model.eval()


@pytest.fixture(scope="module")
def memorised() -> nn.Module:
    return overfitted(members(120))


@pytest.fixture(scope="module")
def stranger() -> nn.Module:
    return overfitted(toy_samples(120, seed=9, contrast=0.05, noise=0.3))


WITH = {"shadows": 8, "epochs": 60, "shadow_batch_size": 16, "lr": 1e-2}
ATTACKS_WITH_OPTIONS: dict[str, dict[str, Any]] = {
    "lira": WITH,
    "rmia": WITH,
    "shokri": WITH,
    "quantile": {},
    "label_only": {},
}


@pytest.mark.parametrize("attack", ATTACKS_WITH_OPTIONS)
def test_every_attack_catches_a_model_that_knows_its_records_by_heart(
    tmp_path: Path, memorised: nn.Module, stranger: nn.Module, attack: str
) -> None:
    train, test = members(120), nonmembers(120)
    context = FakeContext(tmp_path, "membership", sources={"train.npz": train})
    check = Membership.model_validate({"train": "train.npz", "attack": attack, **ATTACKS_WITH_OPTIONS[attack]})
    result = check.run(toy_target(memorised), test, context)
    assert (metric(result, "member_accuracy").value or 0) > 0.95
    assert interval(result, "auc")[0] > 0.55
    assert result.findings[0].severity in ("low", "medium", "high")

    def failed(module: nn.Module, claimed: Result = result) -> list[str]:
        return [claim.what for claim in check.verify(toy_target(module), test, claimed, context) if not claim.ok]

    assert failed(memorised) == []
    assert "the model answers as recorded" in failed(stranger)
    forged = tuple(m.model_copy(update={"value": 0.5}) if m.name == "auc" else m for m in result.metrics)
    assert failed(memorised, result.model_copy(update={"metrics": forged})) == ["auc follows from the scores"]


@pytest.mark.parametrize("attack", ATTACKS_WITH_OPTIONS)
def test_no_attack_accuses_a_model_that_never_saw_the_members(tmp_path: Path, stranger: nn.Module, attack: str) -> None:
    result = run(tmp_path, stranger, members(120), nonmembers(120), attack=attack, **ATTACKS_WITH_OPTIONS[attack])
    low, high = interval(result, "auc")
    spare = (high - low) / 2  # one in twenty intervals misses; twice as wide, one in ten thousand
    assert low - spare <= 0.5 <= high + spare
    assert result.findings[0].severity in ("info", "low")


def test_shadow_models_find_more_than_the_confidence(tmp_path: Path, memorised: nn.Module) -> None:
    train, test = members(120), nonmembers(120)
    found = {
        attack: metric(run(tmp_path, memorised, train, test, attack=attack, **options), "auc").value or 0.0
        for attack, options in (("confidence", {}), ("lira", WITH))
    }
    assert found["lira"] > found["confidence"] + 0.02


def test_more_queries_are_asked_and_recorded(tmp_path: Path, memorised: nn.Module) -> None:
    context = FakeContext(tmp_path, "membership", sources={"train.npz": members(40)})
    check = Membership(train="train.npz", attack="lira", shadows=2, epochs=1, flip=True, shifts=1)
    result = check.run(toy_target(memorised), nonmembers(40), context)
    tensors = context.read_evidence(result.evidence[0])
    assert tensors["target_logits"].shape == (10, 80, 4)
    assert tensors["shadow_scores"].shape == (2, 80, 10)
    x = encode(nonmembers(40).inputs[np.arange(40)])
    assert torch.allclose(tensors["target_logits"][5, 40:], memorised(x.flip(-1)), atol=1e-5)
    assert not any("mirrored" in text for text in result.not_covered)
    assert result.forwards == 800


def pretrained_and_tuned() -> tuple[nn.Module, nn.Module, Samples, Samples]:
    """A network that knows other pictures, the same tuned on the members for a while, members and non-members."""
    base = overfitted(toy_samples(400, seed=7, contrast=0.05, noise=0.3))
    train, test = members(120), nonmembers(120)
    x = encode(train.inputs[np.arange(len(train))])
    tuned = continued(base, 0)
    config = ShadowConfig(epochs=20, batch_size=16, lr=1e-3)
    fit([tuned], x, torch.from_numpy(train.labels), [torch.arange(len(train))], config)
    return base, tuned.eval(), train, test


def test_shadows_that_start_where_a_fine_tuned_model_did_find_more(tmp_path: Path) -> None:
    base, tuned, train, test = pretrained_and_tuned()
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    target = toy_target(base).with_module(tuned, "tuned")
    options = {"attack": "lira", "shadows": 16, "epochs": 20, "shadow_batch_size": 16, "lr": 1e-3}
    found = {}
    for start in ("random", "base", "base.safetensors"):
        context = FakeContext(tmp_path, "membership", sources={"train.npz": train})
        check = Membership.model_validate({"train": "train.npz", "start": start, **options})
        result = check.run(target, test, context)
        assert any((start == "random") == ("start from random weights" in text) for text in result.warnings)
        found[start] = metric(result, "auc").value or 0.0
    assert found["base"] == found["base.safetensors"]
    assert found["base"] > found["random"] + 0.05
    assert check.files() == ("train.npz", "base.safetensors")


def test_a_new_head_is_drawn_for_each_shadow_model_and_the_rest_kept() -> None:
    base = network()
    first, second = continued(base, 1, new_head=True), continued(base, 2, new_head=True)
    kept = continued(base, 1)
    for name, value in base.state_dict().items():
        assert torch.equal(kept.get_parameter(name), value)
        assert torch.equal(first.get_parameter(name), value) == (not name.startswith("3."))
    assert not torch.equal(first.get_parameter("3.weight"), second.get_parameter("3.weight"))


def test_weights_that_are_not_there_or_do_not_fit_are_named(tmp_path: Path, memorised: nn.Module) -> None:
    options = {"attack": "lira", "shadows": 2, "epochs": 1}
    with pytest.raises(UnsupportedError, match="this is the model as given"):
        run(tmp_path, memorised, members(40), nonmembers(40), start="base", **options)
    save_file({"1.weight": torch.zeros(3, 64)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"other\.safetensors does not fit the model"):
        run(tmp_path, memorised, members(40), nonmembers(40), start="other.safetensors", **options)


def test_shadows_that_train_on_too_little_are_named(tmp_path: Path, memorised: nn.Module) -> None:
    small = run(tmp_path, memorised, members(120), nonmembers(120), attack="rmia", shadows=2, epochs=1, limit=40)
    assert any("trained on 40 records, the model on 120" in text for text in small.warnings)
    full = run(tmp_path, memorised, members(120), nonmembers(120), attack="rmia", shadows=2, epochs=1)
    assert not any("the model on 120" in text for text in full.warnings)


def test_the_access_that_is_needed_depends_on_the_attack() -> None:
    def needed(attack: str) -> frozenset[str]:
        return Membership.model_validate({"train": "a", "attack": attack}).required()

    assert needed("loss") == needed("quantile") == {"scores"}
    assert needed("label_only") == {"labels"}
    assert needed("lira") == needed("rmia") == needed("shokri") == {"gradients", "scores"}
