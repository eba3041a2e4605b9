"""The audit of the budget trains as the spec says: a defect in one mode is seen in that mode."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.audit.checks import dp as dp_check
from auditorch.audit.checks.dp import DPAudit
from auditorch.audit.target import Target
from auditorch.audit.variants import dp_sgd as dp_variant
from auditorch.audit.variants.dp_sgd import DPSGDVariant
from auditorch.audit.variants.private_options import PrivateTraining
from auditorch.privacy import dp_sgd
from auditorch.privacy.auditing.canaries import CanaryNetwork
from auditorch.privacy.clipping import Clipping
from auditorch.privacy.config import DPConfig
from auditorch.privacy.private_run import PrivateRun
from auditorch.reports.record import Result
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from .fakes import FakeContext, toy_samples, toy_target
from .test_dp import OPTIONS, value

MODES: dict[str, dict[str, Any]] = {
    "flat": {},
    "per_layer": {"clipping": "per_layer"},
    "automatic": {"clipping": "automatic"},
    "adaptive": {"clipping": "adaptive"},
    "views": {"views": 4, "augment": {"flip": 0.5}},
    "average": {"ema": 0.9, "schedule": "cosine", "momentum": 0.5},
    "half precision": {"precision": "bfloat16"},
    "head": {"scope": "head"},
    "adapters": {"scope": "lora", "lora_rank": 2},
    "secure noise": {"secure_noise": True},
}


@pytest.fixture(autouse=True, scope="module")
def account_once() -> Iterator[None]:
    """All trainings here have the same noise, rate and steps: their budget is computed once, not a dozen times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dp_sgd, "epsilon", cache(dp_sgd.epsilon))
        yield


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 4)).eval()


def audited(tmp_path: Path, mode: str) -> Result:
    if mode == "adapters":
        pytest.importorskip("peft")
    check = DPAudit.model_validate({**OPTIONS, "lr": 0.1, **MODES[mode]})
    context = FakeContext(tmp_path, "dp", seed=5, sources={"train.npz": toy_samples(200)})
    return check.run(toy_target(network()), toy_samples(), context)


@pytest.mark.parametrize("mode", MODES)
def test_a_clean_training_stands_in_every_mode(tmp_path: Path, mode: str) -> None:
    result = audited(tmp_path, mode)
    assert value(result, "epsilon_lower_bound") < value(result, "epsilon") < 0.5 * value(result, "highest_provable")


def _unclipped(patch: pytest.MonkeyPatch) -> None:
    weights = Clipping.weights

    def ones(rule: Clipping, squared_norms: Tensor) -> tuple[list[Tensor], Tensor]:
        given, longer = weights(rule, squared_norms)
        return [torch.ones_like(weight) for weight in given], longer

    patch.setattr(Clipping, "weights", ones)


def _weights_of_the_next_layer(patch: pytest.MonkeyPatch) -> None:
    by_layer = Clipping._by_layer

    def mixed_up(rule: Clipping, squared_norms: Tensor) -> tuple[list[Tensor], Tensor]:
        weights, longer = by_layer(rule, squared_norms)
        return [*weights[-1:], *weights[:-1]], longer

    patch.setattr(Clipping, "_by_layer", mixed_up)


def _noise_for_the_first_bound(patch: pytest.MonkeyPatch) -> None:
    begin = PrivateRun._begin_sums

    def stale(run: PrivateRun, step: int) -> None:
        now, run.clipping.bound = run.clipping.bound, run.config.max_grad_norm
        begin(run, step)
        run.clipping.bound = now

    patch.setattr(PrivateRun, "_begin_sums", stale)


def _each_view_a_record(patch: pytest.MonkeyPatch) -> None:
    """Every view is clipped by itself, and all are added up."""
    accumulate = PrivateRun._accumulate

    def repeated(run: PrivateRun, part: Tensor) -> None:
        for _ in range(run.config.views):
            accumulate(run, part)

    patch.setattr(PrivateRun, "_accumulate", repeated)


DEFECTS = [
    *((mode, _unclipped) for mode in MODES),
    ("per_layer", _weights_of_the_next_layer),
    ("adaptive", _noise_for_the_first_bound),
    ("views", _each_view_a_record),
]


@pytest.mark.parametrize(("mode", "defect"), DEFECTS)
def test_wrong_clipping_is_caught_in_every_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, defect: Any
) -> None:
    defect(monkeypatch)
    result = audited(tmp_path, mode)
    assert value(result, "epsilon_lower_bound") > value(result, "epsilon")
    assert result.findings[0].severity == "critical"


def test_what_is_audited_is_what_the_variant_trains() -> None:
    """Every option that shapes a step means the same in both, and reaches the trainer."""
    given: dict[str, Any] = {
        "start": "public.safetensors",
        "new_head": True,
        "noise_multiplier": 1.5,
        "delta": 1e-4,
        "epochs": 3,
        "batch_size": 7,
        "max_grad_norm": 0.3,
        "clipping": "per_layer",
        "quantile": 0.7,
        "lr": 0.4,
        "schedule": "cosine",
        "optimizer": "adam",
        "momentum": 0.2,
        "views": 2,
        "augment": {"flip": 0.5},
        "ema": 0.5,
        "precision": "bfloat16",
        "secure_noise": True,
        "scope": 1,
        "lora_rank": 3,
        "lora_alpha": 5.0,
    }
    assert given.keys() == PrivateTraining.model_fields.keys()
    check = DPAudit.model_validate({"train": "t", **given})
    variant = DPSGDVariant.model_validate({"train": "t", **given})
    configs = [one.steps(epsilon=None, batch_size=7, seed=1) for one in (check, variant)]
    assert configs[0] == configs[1]
    assert check.files() == variant.files() == ("t", "public.safetensors")
    fields = set(DPConfig.__dataclass_fields__) - {"epsilon", "seed", "physical_batch"}
    assert {name: getattr(configs[0], name) for name in fields} == {name: given[name] for name in fields}
    assert check.trained_part(0) == variant.trained_part(0) == 1


class StopError(Exception):
    """Nothing needs to be trained to see where a training begins."""


def begun(made: DPAudit | DPSGDVariant, root: Path, patch: pytest.MonkeyPatch, on: Target) -> nn.Module:
    """A copy of the network as it is handed to the trainer."""
    handed: list[nn.Module] = []

    def noted(module: nn.Module, *_: Any, **__: Any) -> Any:
        handed.append(copy.deepcopy(module))
        raise StopError

    for place in (dp_check, dp_variant):
        patch.setattr(place, "dp_fine_tune", noted)
    context = FakeContext(root, "dp", seed=5, sources={"train.npz": toy_samples(200)})
    with pytest.raises(StopError):
        made.build(on, toy_samples(), context) if isinstance(made, DPSGDVariant) else made.run(
            on, toy_samples(), context
        )
    network = handed[0]
    return network.module if isinstance(network, CanaryNetwork) else network


STARTS: list[dict[str, Any]] = [
    {},
    {"start": "target"},
    {"start": "target", "new_head": True, "scope": "head"},
    {"start": "public.safetensors"},
    {"start": "public.safetensors", "new_head": True, "scope": 1},
]


@pytest.mark.parametrize("options", STARTS)
def test_the_audit_begins_where_the_variant_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """To the bit, on the model as given as on a variant of it, with the same layers frozen."""
    public = network()
    with torch.no_grad():
        for parameter in public.parameters():
            parameter.add_(1)
    save_file(public.state_dict(), tmp_path / "public.safetensors")
    base = toy_target(network())
    changed = base.with_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval(), "1" * 64)
    given = {"train": "train.npz", "noise_multiplier": 1.0, "batch_size": 15, **options}
    wanted = begun(DPSGDVariant.model_validate(given), tmp_path, monkeypatch, base)
    for target in (base, changed):
        found = begun(DPAudit.model_validate(given), tmp_path, monkeypatch, target)
        pairs = list(zip(found.named_parameters(), wanted.named_parameters(), strict=True))
        assert all(a == b and torch.equal(x, y) and x.requires_grad == y.requires_grad for (a, x), (b, y) in pairs)
    origin = public if "public.safetensors" in options.values() else network()
    kept = [torch.equal(x, y) for x, y in zip(wanted.parameters(), origin.parameters(), strict=True)]
    fresh_head = [True, True, False, False] if options.get("new_head") else [True] * 4
    assert kept == (fresh_head if options else [False] * 4)


def test_what_the_audit_does_not_train_stays_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[nn.Module] = []

    def noted(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        result = dp_sgd.dp_fine_tune(module, *arguments, **options)
        trained.append(result.module)
        return result

    monkeypatch.setattr(dp_check, "dp_fine_tune", noted)
    check = DPAudit.model_validate({**OPTIONS, "epochs": 1, "canaries": 20, "start": "target", "scope": "head"})
    context = FakeContext(tmp_path, "dp", seed=5, sources={"train.npz": toy_samples(200)})
    result = check.run(toy_target(network()), toy_samples(), context)
    after = trained[0].get_submodule("module").state_dict()
    same = {key: torch.equal(value, after[key]) for key, value in network().state_dict().items()}
    assert same == {"1.weight": True, "1.bias": True, "3.weight": False, "3.bias": False}
    assert any("began from the weights of the model as given" in text for text in result.not_covered)


def test_a_new_head_of_random_weights_is_refused() -> None:
    for kind in (DPAudit, DPSGDVariant):
        with pytest.raises(ValidationError, match="random weights have a new head in any case"):
            kind.model_validate({"train": "t", "epsilon": 1, "new_head": True})
