"""Shadow models of a model of which only a part was trained: the rest stays as it was, and the leak is found."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks import membership_attacks
from auditorch.audit.checks.membership import Membership
from auditorch.audit.checks.membership_shadows import origin, trained_shadows
from auditorch.audit.errors import UnsupportedError
from auditorch.audit.recipe import Recipe
from auditorch.audit.runner import run_audit
from auditorch.audit.samples import Samples
from auditorch.audit.target import Target
from auditorch.audit.variants.base import Variant
from auditorch.audit.variants.distillation import DistillationVariant
from auditorch.audit.variants.dp_sgd import DPSGDVariant
from auditorch.audit.variants.fine_tuning import FineTuningVariant
from auditorch.audit.variants.pruning import PruningVariant
from auditorch.defenses.lora import LoRA
from auditorch.defenses.scope import Scope, training_scope
from auditorch.privacy.shadow.fresh import continued
from auditorch.privacy.shadow.stack import How
from auditorch.privacy.shadow.training import ShadowConfig, fit
from auditorch.reports.record import Result
from safetensors.torch import save_file
from torch import Tensor, nn

from .fakes import FakeContext, encode, toy_samples, toy_target
from .runs import toy_spec

MEMBERS = toy_samples(120, seed=1, contrast=0.05, noise=0.3)
OTHERS = toy_samples(120, seed=2, contrast=0.05, noise=0.3, start=1000)


def network() -> nn.Module:
    """Layers of every kind that must stay as they are: with weights, with statistics, with randomness."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            ("flat", nn.Flatten()),
            ("first", nn.Linear(64, 96)),
            ("norm", nn.BatchNorm1d(96)),
            ("relu", nn.ReLU()),
            ("drop", nn.Dropout(0.5)),
            ("head", nn.Linear(96, 4)),
        ]
        module = nn.Sequential(OrderedDict(layers))
        module.get_buffer("norm.running_mean").normal_()
        return module.eval()


def arrays(data: Samples) -> tuple[Tensor, Tensor]:
    return encode(data.inputs[np.arange(len(data))]), torch.from_numpy(data.labels)


@pytest.mark.parametrize("how", ["products", "vmap", "turn"])
@pytest.mark.parametrize("scope", ["head", 1, 2])
def test_what_is_not_trained_is_the_base_s_to_the_bit(how: How, scope: Scope) -> None:
    base, (x, y) = network(), arrays(MEMBERS)
    config = ShadowConfig(models=4, epochs=3, batch_size=16, lr=0.05, how=how)
    with trained_shadows(base, Recipe("base", scope=scope), x, y, config) as shadows:
        assert shadows.how == how
        models = shadows.stacks[0].models()
    frozen = ("first", "norm") if scope in ("head", 1) else ("first",)
    for key, value in base.state_dict().items():
        same = [torch.equal(model.state_dict()[key], value) for model in models]
        assert same == [key.startswith(frozen)] * 4, key
    assert not torch.equal(models[0].state_dict()["head.weight"], models[1].state_dict()["head.weight"])


@pytest.mark.parametrize("how", ["products", "turn"])
def test_adapters_are_trained_beside_weights_that_stay(how: How) -> None:
    pytest.importorskip("peft")
    base, (x, y) = network(), arrays(MEMBERS)
    config = ShadowConfig(models=4, epochs=3, batch_size=16, lr=0.05, how=how)
    with trained_shadows(base, Recipe("base", scope=LoRA(2)), x, y, config) as shadows:
        assert shadows.how == how
        models = shadows.stacks[0].models()
        adapted = shadows.logits(x)
    changes = [model.state_dict()["first.weight"] - base.state_dict()["first.weight"] for model in models]
    assert [int(torch.linalg.matrix_rank(change, rtol=1e-3)) for change in changes] == [2] * 4
    assert (changes[0] - changes[1]).norm() > 1e-3
    for key in ("first.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        assert all(torch.equal(model.state_dict()[key], base.state_dict()[key]) for model in models), key
    merged = torch.stack([model.eval()(x) for model in models])
    assert torch.allclose(merged, adapted, atol=1e-4), "what was asked is what was trained"


@pytest.mark.parametrize(("scope", "silent"), [("head", True), (2, True), ("all", False)])
def test_dropout_draws_only_where_its_part_is_trained(scope: Scope, silent: bool) -> None:
    """Equal models on equal batches, all records at once: they part ways only where dropout draws differently."""
    x, y = arrays(MEMBERS)
    config = ShadowConfig(models=2, epochs=3, batch_size=len(y), optimizer="sgd", lr=0.05)
    heads = []
    for number in (0, 1):
        model = continued(network(), 0)
        with training_scope(model, scope):
            fit([model], x, y, [torch.arange(len(y))], config, first=number)
        heads.append(model.get_parameter("head.weight").detach())
    moved = float((heads[0] - network().state_dict()["head.weight"]).norm())
    assert moved > 0.01
    assert (float((heads[0] - heads[1]).norm()) < 1e-4 * moved) == silent


def test_models_in_eval_mode_are_refused() -> None:
    x, y = arrays(MEMBERS)
    with pytest.raises(UnsupportedError, match="Sequential is in eval mode"):
        fit([network()], x, y, [torch.arange(len(y))], ShadowConfig())


def head_only() -> tuple[nn.Module, nn.Module]:
    """A network with features for anything, and the same with a head that knows the members by heart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 4)).eval()
    x, y = arrays(MEMBERS)
    tuned = continued(base, 0, new_head=True)
    with training_scope(tuned, "head"):
        fit([tuned], x, y, [torch.arange(len(y))], ShadowConfig(epochs=60, batch_size=16, lr=1e-2))
    return base, tuned.eval()


OPTIONS = {"train": "train.npz", "attack": "lira", "shadows": 16, "epochs": 60, "shadow_batch_size": 16, "lr": 1e-2}
HEAD = FineTuningVariant.model_validate({"train": "train.npz", "scope": "head", "new_head": "default"}).recipe()


def auc(result: Result) -> float:
    found = result.metric("auc")
    assert found is not None
    assert found.value is not None
    return found.value


def run(target: Target, folder: Path, **options: Any) -> Result:
    context = FakeContext(folder, "membership", sources={"train.npz": MEMBERS})
    return Membership.model_validate({**OPTIONS, **options}).run(target, OTHERS, context)


def test_a_head_that_leaks_is_found_by_shadows_of_the_head(tmp_path: Path) -> None:
    """All the ways to say it agree to the bit; shadow models trained whole from random weights find less."""
    base, tuned = head_only()
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    given, variant = toy_target(tuned), toy_target(base).with_module(tuned, "tuned", recipe=HEAD)
    said = run(given, tmp_path, start="base.safetensors", scope="head", new_head=True)
    known = run(variant, tmp_path, start="base")
    random = run(variant, tmp_path)
    assert auc(said) == auc(known) > 0.6
    assert auc(said) > auc(random) + 0.03
    assert {"start": "base", "new_head": True, "scope": "head"}.items() <= known.parameters.items()
    assert {"start": "random", "new_head": False, "scope": "all"}.items() <= random.parameters.items()
    assert any("with a head of its own, and the head are trained" in text for text in said.warnings)
    assert any("`start: base` finds more" in text for text in random.warnings)


def test_a_head_that_never_saw_the_members_is_not_accused(tmp_path: Path) -> None:
    base, _ = head_only()
    stranger = continued(base, 0, new_head=True)
    x, y = arrays(toy_samples(120, seed=9, contrast=0.05, noise=0.3))
    with training_scope(stranger, "head"):
        fit([stranger], x, y, [torch.arange(len(y))], ShadowConfig(epochs=60, batch_size=16, lr=1e-2))
    target = toy_target(base).with_module(stranger.eval(), "stranger", recipe=HEAD)
    found = run(target, tmp_path, start="base").metric("auc")
    assert found is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    spare = (found.ci_high - found.ci_low) / 2
    assert found.ci_low - spare <= 0.5 <= found.ci_high + spare


VARIANTS: list[tuple[type[Variant], dict[str, Any], Recipe | None]] = [
    (FineTuningVariant, {"scope": "head"}, Recipe("base", False, "head")),
    (FineTuningVariant, {"scope": "lora", "lora_rank": 3}, Recipe("base", False, LoRA(3))),
    (FineTuningVariant, {"scope": 2, "new_head": "zeros"}, Recipe("base", True, 2)),
    (DistillationVariant, {}, Recipe("random")),
    (DistillationVariant, {"start": "target"}, Recipe("base")),
    (DPSGDVariant, {"epsilon": 8}, Recipe("random")),
    (DPSGDVariant, {"epsilon": 8, "start": "target", "scope": "head"}, Recipe("base", False, "head")),
    (DPSGDVariant, {"epsilon": 8, "start": "public", "new_head": True}, Recipe("public", True)),
    (PruningVariant, {}, None),
]


@pytest.mark.parametrize(("kind", "options", "recipe"), VARIANTS)
def test_a_variant_says_how_it_was_trained(kind: type[Variant], options: dict[str, Any], recipe: Recipe | None) -> None:
    given = {"train": "train.npz"} if "train" in kind.model_fields else {}
    assert kind.model_validate({**given, **options}).recipe() == recipe


def test_a_run_tells_the_check_how_the_variant_was_trained(tmp_path: Path) -> None:
    shadows = {"train": "test.npz", "nonmembers": "other.npz", "attack": "lira", "shadows": 2, "epochs": 1}
    spec = toy_spec(
        tmp_path,
        Membership.model_validate({"id": "membership", **shadows, "start": "base", "variants": ["tuned"]}),
        variants=(FineTuningVariant.model_validate({"id": "tuned", "train": "test.npz", "scope": 1, "epochs": 1}),),
    )
    np.savez(tmp_path / "other.npz", x=OTHERS.inputs[np.arange(40)], y=OTHERS.labels[:40])
    record = run_audit(spec, tmp_path / "out")
    variant = record.variant("tuned")
    assert variant is not None
    found = variant.result("membership")
    assert found is not None
    assert found.status == "ok", found.error
    assert found.parameters["scope"] == 1
    assert any("the last 1 blocks" in text for text in found.warnings)


PUBLIC = Recipe("public.safetensors", True, "head")


@pytest.mark.parametrize(
    ("known", "options", "recipe"),
    [
        (None, {}, Recipe()),
        (HEAD, {}, Recipe()),  # whether the base saw the records, only its owner knows
        (HEAD, {"start": "base"}, HEAD),
        (HEAD, {"start": "base", "scope": "all"}, Recipe("base", True)),
        (HEAD, {"start": "other"}, Recipe("other")),
        (HEAD, {"start": "random"}, Recipe()),
        (PUBLIC, {}, PUBLIC),
        (PUBLIC, {"new_head": False}, replace(PUBLIC, new_head=False)),
        (PUBLIC, {"start": "base"}, Recipe("base")),
        (Recipe("random", scope="head"), {}, Recipe("random", scope="head")),
        (None, {"start": "base", "scope": "lora", "lora_rank": 4}, Recipe("base", False, LoRA(4))),
    ],
)
def test_options_come_before_the_record_and_the_record_before_random_weights(
    known: Recipe | None, options: dict[str, Any], recipe: Recipe
) -> None:
    target = toy_target().with_module(network(), "variant", recipe=known)
    assert Membership.model_validate({"train": "t", "attack": "lira", **options}).recipe(target) == recipe


@pytest.mark.parametrize("options", [{"scope": "head"}, {"new_head": True}])
def test_a_part_of_random_weights_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="random weights have none worth keeping"):
        run(toy_target(network()), tmp_path, **options)


def test_shadows_of_a_private_variant_have_its_layers_and_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm became GroupNorm: the public weights, which have BatchNorm, are loaded before that."""
    variant = DPSGDVariant.model_validate({"train": "t", "epsilon": 8, "start": "public.safetensors", "new_head": True})
    public = network()
    with torch.no_grad():
        public.get_parameter("first.weight").fill_(0.25)
        public.get_parameter("norm.weight").fill_(0.5)
    save_file(public.state_dict(), tmp_path / "public.safetensors")
    private = variant.wrap(network()).eval()
    target = toy_target(network()).with_module(private, "private", variant.wrap, variant.recipe())
    begun = origin(target, "public.safetensors", FakeContext(tmp_path))
    assert isinstance(begun.get_submodule("norm"), nn.GroupNorm)
    assert (begun.get_parameter("first.weight") == 0.25).all()
    assert (begun.get_parameter("norm.weight") == 0.5).all()
    seen: list[tuple[nn.Module, Recipe]] = []
    real = membership_attacks.trained_shadows

    def noted(module: nn.Module, recipe: Recipe, *rest: Any) -> Any:
        seen.append((module, recipe))
        return real(module, recipe, *rest)

    monkeypatch.setattr(membership_attacks, "trained_shadows", noted)
    result = run(target, tmp_path, shadows=2, epochs=1)
    assert seen[0][1] == Recipe("public.safetensors", True)
    assert isinstance(seen[0][0].get_submodule("norm"), nn.GroupNorm)
    assert result.parameters["start"] == "public.safetensors"
