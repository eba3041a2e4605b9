import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import Threat
from auditorch.audit.checks.base import encoded
from auditorch.audit.errors import ModelError, UnsupportedError
from auditorch.audit.registry import load
from auditorch.audit.variants.adversarial_training import AdversarialTrainingVariant
from auditorch.audit.variants.base import Built, Variant
from auditorch.audit.variants.distillation import DistillationVariant
from auditorch.audit.variants.dp_sgd import DPSGDVariant
from auditorch.audit.variants.fine_tuning import FineTuningVariant
from auditorch.audit.variants.regularization import RegularizationVariant
from auditorch.defenses.catastrophic import OverfittingGuard
from auditorch.defenses.checkpoint import Checkpoint
from auditorch.defenses.spectral_norm import largest_singular_value
from auditorch.defenses.training import DivergedError, TrainingConfig, fit
from auditorch.privacy import dp_sgd
from auditorch.privacy.accounting import Budget
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from .fakes import FakeContext, FakeProgress, linear_model, small_cnn, toy_samples, toy_target

TRAIN = toy_samples(200, seed=1)
ADVERSARIAL = AdversarialTrainingVariant(train="train", eps=0.05, epochs=4, steps=3)
REGULAR = RegularizationVariant(train="train", epochs=2)
TUNED = FineTuningVariant(train="train", epochs=2)
DISTILLED = DistillationVariant(train="train", epochs=2)
PRIVATE = DPSGDVariant(train="train", noise_multiplier=0.8, epochs=3, batch_size=50)


@pytest.fixture
def instant_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accountants have tests of their own and take seconds."""

    def account(noise: float, rate: float, steps: int, delta: float) -> Budget:
        return Budget(1.0, delta, "prv", 1.0, 1.0, 1.1, noise, rate, steps)

    monkeypatch.setattr(dp_sgd, "epsilon", account)


def context(root: Path, seed: int = 0) -> FakeContext:
    return FakeContext(root, variant="variant", seed=seed, sources={"train": TRAIN})


def build(variant: Variant, root: Path, module: nn.Module | None = None, seed: int = 0) -> Built:
    return variant.build(toy_target(small_cnn() if module is None else module), toy_samples(8), context(root, seed))


def accuracy(module: nn.Module) -> float:
    x, y = encoded(toy_target(), toy_samples(80, seed=5))
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def _counter(calls: list[int]) -> Any:
    return lambda _, args: calls.append(len(args[0]))


def with_batch_norm() -> nn.Sequential:
    module = small_cnn()
    return nn.Sequential(module[0], nn.BatchNorm2d(8), *list(module)[1:]).eval()


@pytest.mark.usefixtures("instant_accountant")
@pytest.mark.parametrize("variant", [ADVERSARIAL, REGULAR, TUNED, DISTILLED, PRIVATE], ids=lambda variant: variant.name)
@pytest.mark.parametrize("make", [small_cnn, with_batch_norm])
def test_builds_a_copy_that_reloads_and_repeats(variant: Variant, make: Any, tmp_path: Path) -> None:
    base = make()
    before = copy.deepcopy(base.state_dict())
    built = build(variant, tmp_path, base)
    assert all(torch.equal(base.state_dict()[name], before[name]) for name in before), "the base was changed"
    assert not base.training
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert not built.module.training

    x, _ = encoded(toy_target(), toy_samples(8))
    reloaded = variant.wrap(copy.deepcopy(base))
    reloaded.load_state_dict(built.module.state_dict())
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(x), built.module(x))
        assert not torch.allclose(built.module(x), base(x), atol=1e-3)

    again, other = build(variant, tmp_path, make()), build(variant, tmp_path, make(), seed=1)
    weights = [[*result.module.state_dict().values()] for result in (built, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


@pytest.mark.usefixtures("instant_accountant")
@pytest.mark.parametrize("variant", [ADVERSARIAL, REGULAR, TUNED, DISTILLED, PRIVATE], ids=lambda variant: variant.name)
def test_reports_cost_curve_and_progress(variant: Any, tmp_path: Path) -> None:
    where = context(tmp_path)
    built = variant.build(toy_target(small_cnn()), toy_samples(8), where)
    values = {metric.name: metric.value for metric in built.metrics}
    assert values["parameters"] == sum(parameter.numel() for parameter in small_cnn().parameters())
    assert values["epochs"] == variant.epochs
    assert values["training_seconds"] > 0
    chart = built.figures[0]
    assert chart.kind == "chart"
    assert [line.name for line in chart.lines] == ["accuracy", "loss"]
    assert len(chart.lines[0].x) == variant.epochs
    assert str(variant.epochs) in built.summary or "DP-SGD" in built.summary
    assert isinstance(where.progress, FakeProgress)
    assert where.progress.started[0][1] == where.progress.done == variant.epochs * len(TRAIN)
    assert variant.files() == ("train",)
    assert load("defenses", variant.name) is type(variant)


def test_adversarial_training_helps_against_pgd(tmp_path: Path) -> None:
    x, y = encoded(toy_target(), TRAIN)
    plain = small_cnn()
    fit(plain, x, y, config=TrainingConfig(epochs=15, lr=0.02))
    assert accuracy(plain) > 0.95
    variant = AdversarialTrainingVariant(train="train", eps=0.06, epochs=12, steps=4, lr=0.02, batch_size=50)
    trained = build(variant, tmp_path, plain).module
    test_x, test_y = encoded(toy_target(), toy_samples(80, seed=5))
    losses = []
    for module in (plain, trained):
        x_adv = PGD(steps=20, early_stop=False)(module, test_x, test_y, Threat("linf", 0.06))
        losses.append(cross_entropy(module(x_adv), test_y).item())
    assert losses[1] < 0.8 * losses[0]


def test_fast_is_cheaper_than_pgd(tmp_path: Path) -> None:
    passes = {}
    for method in ("pgd", "fast"):
        counted = small_cnn()
        calls: list[int] = []
        counted.register_forward_pre_hook(_counter(calls))
        build(AdversarialTrainingVariant(train="train", method=method, steps=7, epochs=1), tmp_path, counted)
        passes[method] = sum(calls)
    guarded = 32 * (2 + 6)  # one step and a look, five steps and a look
    assert passes == {"pgd": 8 * len(TRAIN), "fast": 2 * len(TRAIN) + guarded}


def test_regularisation_makes_the_model_less_sure(tmp_path: Path) -> None:
    x, _ = encoded(toy_target(), toy_samples(80, seed=5))
    smooth = build(RegularizationVariant(train="train", label_smoothing=0.4, epochs=15, lr=0.03), tmp_path).module
    sharp = RegularizationVariant(train="train", label_smoothing=0, mixup=0, weight_decay=0, epochs=15, lr=0.03)
    with torch.no_grad():
        confidence = [float(m(x).softmax(1).amax(1).mean()) for m in (smooth, build(sharp, tmp_path).module)]
    assert accuracy(smooth) > 0.9
    assert confidence[0] < 0.8 < 0.9 < confidence[1]


def test_scope_reaches_the_loop(tmp_path: Path) -> None:
    base = small_cnn()
    built = build(RegularizationVariant(train="train", epochs=1, scope="head"), tmp_path, base)
    assert torch.equal(built.module.state_dict()["0.weight"], base.state_dict()["0.weight"])
    assert not torch.equal(built.module.state_dict()["4.weight"], base.state_dict()["4.weight"])


def test_dp_reports_its_budget(tmp_path: Path) -> None:
    built = build(DPSGDVariant(train="train", epsilon=8, delta=1e-3, epochs=4, batch_size=50), tmp_path)
    values = {metric.name: metric.value for metric in built.metrics}
    assert values["epsilon"] is not None
    assert 7.9 < values["epsilon"] <= 8
    assert (values["delta"], values["sample_rate"], values["steps"]) == (1e-3, 0.25, 16)
    assert values["noise_multiplier"] is not None
    assert values["noise_multiplier"] > 0.3
    assert built.parameters["accountant"] == "prv"
    assert set(built.parameters["epsilon_by_accountant"]) == {"prv", "pld", "rdp"}
    assert "epsilon 7.9" in built.summary or "epsilon 8" in built.summary
    assert any("known seed" in text for text in built.warnings)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "trades", "steps": 2, "beta": 3}, "TRADES"),
        ({"method": "mart", "steps": 2}, "MART"),
        ({"method": "pgd", "steps": 2, "awp": 0.01}, "perturbed by 0.01"),
        ({"method": "free", "replays": 2}, "2 passes over each batch"),
        ({"method": "fast"}, "one signed-gradient step"),
        ({"norm": "l2", "eps": 0.5, "steps": 2, "step_size": 0.2}, "(l2, eps 0.5)"),
        ({"norm": "l1", "eps": 2, "steps": 2, "label_smoothing": 0.1}, "(l1, eps 2)"),
    ],
    ids=str,
)
def test_every_method_builds_its_own_model(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    plain = AdversarialTrainingVariant(train="train", eps=0.05, epochs=1, steps=2, lr=0.02)
    variant = AdversarialTrainingVariant.model_validate(
        {"train": "train", "eps": 0.05, "epochs": 1, "lr": 0.02, **options}
    )
    built = build(variant, tmp_path)
    assert says in built.summary
    other = build(plain, tmp_path).module.state_dict()
    assert not all(torch.equal(value, other[name]) for name, value in built.module.state_dict().items())


def test_beta_moves_the_model(tmp_path: Path) -> None:
    weights = []
    for beta in (1, 6):
        variant = AdversarialTrainingVariant(train="train", eps=0.05, epochs=1, steps=2, method="trades", beta=beta)
        weights.append(build(variant, tmp_path).module.state_dict()["4.weight"])
    assert not torch.equal(*weights)


def test_held_out_data_choose_the_epoch_and_stop_the_training(tmp_path: Path) -> None:
    options = {"train": "train", "epochs": 30, "validation": 0.2, "patience": 2, "lr": 0.05}
    built = build(FineTuningVariant.model_validate(options), tmp_path)
    history, kept = built.parameters["history"], built.parameters["kept_epoch"]
    scores = [row["validation"] for row in history]
    assert len(history) < 30
    assert kept == scores.index(max(scores)) + 1 == len(history) - 2
    assert f"Training stopped after epoch {len(history)}" in built.summary
    chart = built.figures[0]
    assert chart.kind == "chart"
    assert [line.name for line in chart.lines] == ["accuracy", "held-out accuracy", "loss"]
    assert chart.lines[1].y == tuple(scores) or list(chart.lines[1].y) == pytest.approx(scores, abs=1e-6)
    with pytest.raises(UnsupportedError, match="patience needs validation"):
        build(FineTuningVariant(train="train", patience=2), tmp_path)


def test_held_out_robust_accuracy_is_lower_than_clean(tmp_path: Path) -> None:
    scores = {}
    for on in ("robust", "clean"):
        variant = AdversarialTrainingVariant(
            train="train", eps=0.08, epochs=3, steps=2, lr=0.02, validation=0.2, validate_on=on
        )
        scores[on] = build(variant, tmp_path).parameters["history"][-1]["validation"]
    assert scores["robust"] < scores["clean"]


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    counted = small_cnn()
    calls: list[int] = []
    counted.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])) if module.training else None)
    build(FineTuningVariant(train="train", epochs=1, validation=0.1), tmp_path, counted)
    assert sum(calls) == 180


def test_catastrophic_overfitting_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OverfittingGuard, "__call__", lambda self, module, progress: "catastrophic overfitting: seen")
    base = small_cnn()
    built = build(AdversarialTrainingVariant(train="train", method="fast", eps=0.05, epochs=3), tmp_path, base)
    assert built.warnings == ("Training stopped in epoch 1: catastrophic overfitting: seen.",)
    assert built.parameters["kept_epoch"] == 0
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in built.module.state_dict().items())


def test_a_killed_variant_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    class Kills(FakeProgress):
        def advance(self, amount: float = 1.0) -> None:
            super().advance(amount)
            if self.done >= 500:
                raise Killed

    monkeypatch.setattr("auditorch.audit.variants.training.Checkpoint", lambda path, key: Checkpoint(path, 0, key))
    whole = build(REGULAR.model_copy(update={"epochs": 3}), tmp_path / "whole")
    variant = REGULAR.model_copy(update={"epochs": 3})
    where = FakeContext(tmp_path / "run", variant="variant", sources={"train": TRAIN}, progress=Kills())
    with pytest.raises(Killed):
        variant.build(toy_target(small_cnn()), toy_samples(8), where)
    assert list((tmp_path / "run" / "scratch").iterdir())
    again = context(tmp_path / "run")
    built = variant.build(toy_target(small_cnn()), toy_samples(8), again)
    assert isinstance(again.progress, FakeProgress)
    assert again.progress.done == 600
    assert not list((tmp_path / "run" / "scratch").iterdir())
    assert built.parameters == whole.parameters
    expected = whole.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in built.module.state_dict().items())


def test_a_diverging_variant_says_so_and_leaves_its_last_good_weights(tmp_path: Path) -> None:
    variant = FineTuningVariant(train="train", epochs=2, optimizer="sgd", lr=1e30)
    with pytest.raises(
        DivergedError, match=r"diverged in epoch 1.*before the training were kept in .*last-good"
    ) as caught:
        build(variant, tmp_path)
    assert caught.value.file is not None
    kept = load_file(caught.value.file)
    assert all(torch.equal(value, kept[name]) for name, value in small_cnn().state_dict().items())


def test_too_little_memory_gives_the_same_model_in_smaller_parts(tmp_path: Path) -> None:
    calls: list[int] = []
    models = []
    for memory in (None, 10):
        module = small_cnn()
        module.register_forward_pre_hook(_counter(calls if memory else []))
        where = context(tmp_path)
        where.batch_size = memory
        variant = FineTuningVariant(train="train", epochs=1, optimizer="sgd", lr=0.1)
        models.append(variant.build(toy_target(module), toy_samples(8), where).module.state_dict())
    assert max(calls) == 10
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-4, atol=1e-6)


def test_regularisers_reach_the_loss_and_the_layers(tmp_path: Path) -> None:
    off = {"train": "train", "epochs": 1, "label_smoothing": 0, "mixup": 0, "weight_decay": 0, "lr": 0.02}
    plain = build(RegularizationVariant.model_validate(off), tmp_path)
    assert "plain cross-entropy" in plain.summary
    base = plain.module.state_dict()["4.weight"]
    for options, says in (
        ({"cutmix": 1.0}, "CutMix 1"),
        ({"dropout": 0.5}, "dropout 0.5"),
        ({"input_gradient": 0.5}, "input-gradient penalty of 0.5"),
        ({"jacobian": 0.1, "jacobian_projections": 2}, "Jacobian penalty of 0.1"),
        ({"spectral_norm": 2.0}, "spectral norms of 2"),
        ({"class_weights": (4.0, 1.0, 1.0, 1.0)}, "plain"),
        ({"augment": {"flip": 0.5, "noise": 0.05}}, "plain"),
        ({"new_head": "zeros"}, "plain"),
        ({"precision": "bfloat16"}, "plain"),
    ):
        built = build(RegularizationVariant.model_validate({**off, **options}), tmp_path)
        assert says in built.summary
        assert list(built.module.state_dict()) == list(plain.module.state_dict())
        assert not torch.equal(built.module.state_dict()["4.weight"], base), options
    spectral = build(RegularizationVariant.model_validate({**off, "spectral_norm": 2.0, "epochs": 5}), tmp_path)
    assert largest_singular_value(spectral.module.get_parameter("4.weight")) == pytest.approx(2.0, rel=0.02)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="class_weights has 2 values, the model 4 classes"):
        build(FineTuningVariant(train="train", class_weights=(1.0, 2.0)), tmp_path)
    with pytest.raises(UnsupportedError, match="Swap is for tabular inputs, not image"):
        build(FineTuningVariant.model_validate({"train": "train", "augment": {"swap": 0.1}}), tmp_path)
    text = replace(toy_target(small_cnn()), modality="text")
    for variant, says in ((ADVERSARIAL, "adversarial training"), (REGULAR.model_copy(update={"mixup": 0.1}), "mixup")):
        with pytest.raises(UnsupportedError, match=f"{says} changes inputs by small amounts"):
            variant.build(text, toy_samples(8), context(tmp_path))
    assert "mixup" not in REGULAR.build(text, toy_samples(8), context(tmp_path)).summary


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the extra peft is not installed")
def test_lora_variant_has_the_base_structure(tmp_path: Path) -> None:
    base = small_cnn()
    built = build(FineTuningVariant(train="train", epochs=1, scope="lora", lora_rank=2, lr=0.05), tmp_path, base)
    assert "LoRA adapters of rank 2" in built.summary
    assert list(built.module.state_dict()) == list(base.state_dict())
    change = (built.module.state_dict()["0.weight"] - base.state_dict()["0.weight"]).flatten(1)
    assert 0 < int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2


def test_a_distilled_student_agrees_with_its_teacher(tmp_path: Path) -> None:
    x, y = encoded(toy_target(), TRAIN)
    teacher = small_cnn(seed=3)
    fit(teacher, x, y, config=TrainingConfig(epochs=15, lr=0.02))
    built = build(DistillationVariant(train="train", epochs=15, lr=0.02, teacher_weight=1.0), tmp_path, teacher)
    with torch.no_grad():
        agreement = (built.module(x).argmax(1) == teacher(x).argmax(1)).float().mean()
        distance = (built.module.state_dict()["4.weight"] - teacher.state_dict()["4.weight"]).norm()
    assert agreement > 0.95
    assert distance > 0.5, "the student started from fresh weights"


@pytest.mark.usefixtures("instant_accountant")
def test_dp_says_that_batch_norm_was_replaced(tmp_path: Path) -> None:
    built = build(PRIVATE, tmp_path, with_batch_norm())
    assert any("became GroupNorm" in text for text in built.warnings)
    assert isinstance(built.module.get_submodule("1"), nn.GroupNorm)


@pytest.mark.usefixtures("instant_accountant")
def test_dp_start(tmp_path: Path) -> None:
    """With almost no learning rate the result shows what the training began from."""
    base = linear_model()
    public = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    save_file(public.state_dict(), tmp_path / "public.safetensors")
    still = {"train": "train", "noise_multiplier": 0.5, "epochs": 1, "lr": 1e-9}
    weight = {}
    for start in ("random", "target", "public.safetensors"):
        variant = DPSGDVariant.model_validate({**still, "start": start})
        built = build(variant, tmp_path, base)
        weight[start] = built.module.state_dict()["1.weight"]
        assert any("says nothing of what they already hold" in text for text in built.warnings) == (start == "target")
    assert torch.allclose(weight["target"], base.state_dict()["1.weight"], atol=1e-5)
    assert torch.allclose(weight["public.safetensors"], public.state_dict()["1.weight"], atol=1e-5)
    assert weight["random"].abs().max() <= 1 / 8 + 1e-4, "a fresh Linear(64, 4) draws within 1/sqrt(64)"
    fresh = DPSGDVariant.model_validate({**still, "start": "public.safetensors", "new_head": True})
    assert not torch.allclose(
        build(fresh, tmp_path, base).module.state_dict()["1.weight"], weight["public.safetensors"]
    )
    assert fresh.files() == ("train", "public.safetensors")


def test_dp_start_refuses_what_does_not_fit(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ModelError, match="does not fit the model"):
        build(DPSGDVariant(train="train", epsilon=8, start="wrong.safetensors"), tmp_path)

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 4))

    with pytest.raises(UnsupportedError, match="cannot draw fresh weights"):
        build(DPSGDVariant(train="train", epsilon=8), tmp_path, Raw())


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (AdversarialTrainingVariant, {"norm": "l0"}),
        (AdversarialTrainingVariant, {"eps": "none"}),
        (AdversarialTrainingVariant, {"method": "pgd", "beta": 2}),
        (AdversarialTrainingVariant, {"method": "free", "awp": 0.01}),
        (AdversarialTrainingVariant, {"method": "fast", "steps": 3}),
        (RegularizationVariant, {"spectral_norm": 1, "scope": "head"}),
        (FineTuningVariant, {"validation": 0.6}),
        (FineTuningVariant, {"augment": {"flop": 1}}),
        (FineTuningVariant, {"class_weights": "some"}),
        (RegularizationVariant, {"label_smoothing": 1.0}),
        (RegularizationVariant, {"mixup": -1}),
        (DPSGDVariant, {}),
        (DPSGDVariant, {"epsilon": 1, "noise_multiplier": 1}),
        (DPSGDVariant, {"epsilon": 1, "delta": 1.0}),
    ],
)
def test_bad_options(cls: type[Variant], options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate({"train": "train", **options})
