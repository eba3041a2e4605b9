"""The audit of the budget trains as the spec says: a defect in one mode is seen in that mode."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.audit.checks.dp import DPAudit
from auditorch.audit.variants.dp_sgd import DPSGDVariant
from auditorch.audit.variants.private_options import PrivateTraining
from auditorch.privacy import dp_sgd
from auditorch.privacy.clipping import Clipping
from auditorch.privacy.config import DPConfig
from auditorch.privacy.private_run import PrivateRun
from auditorch.reports.record import Result
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
    fields = set(DPConfig.__dataclass_fields__) - {"epsilon", "seed", "physical_batch"}
    assert {name: getattr(configs[0], name) for name in fields} == {name: given[name] for name in fields}
    assert check.trained_part(0) == variant.trained_part(0) == 1
