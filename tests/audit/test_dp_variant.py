"""What the ``dp_sgd`` variant adds to the library: scopes, augmentation, tuning cost, resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from auditorch.audit.variants.dp_sgd import DPSGDVariant
from auditorch.privacy import dp_sgd
from auditorch.privacy.accounting import Budget
from auditorch.privacy.private_run import PrivateRun
from torch import nn

from .fakes import FakeContext, linear_model, small_cnn, toy_samples, toy_target

TRAIN = toy_samples(120, seed=1)


@pytest.fixture(autouse=True)
def instant_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    def account(noise: float, rate: float, steps: int, delta: float) -> Budget:
        return Budget(1.0, delta, "prv", 1.0, 1.0, 1.1, noise, rate, steps)

    monkeypatch.setattr(dp_sgd, "epsilon", account)


def variant(**options: Any) -> DPSGDVariant:
    return DPSGDVariant.model_validate(
        {"train": "train", "start": "target", "noise_multiplier": 0.8, "epochs": 2, "batch_size": 40, **options}
    )


def build(made: DPSGDVariant, root: Path, module: nn.Module | None = None) -> Any:
    context = FakeContext(root, variant="variant", seed=0, sources={"train": TRAIN})
    return made.build(toy_target(small_cnn() if module is None else module), toy_samples(8), context)


def test_lora_is_trained_privately_and_merged(tmp_path: Path) -> None:
    """The structure is the base's; every adapted layer and the head moved, and moved by a matrix of low rank."""
    pytest.importorskip("peft")
    base = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    built = build(variant(scope="lora", lora_rank=2, lr=1.0), tmp_path, base)
    before, after = base.state_dict(), built.module.state_dict()
    assert list(before) == list(after)
    change = after["1.weight"] - before["1.weight"]
    assert float(change.norm()) > 1e-3
    assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) <= 2
    assert torch.equal(after["1.bias"], before["1.bias"]), "only adapters and head take noise"
    assert not torch.equal(after["3.weight"], before["3.weight"])
    assert built.module.get_submodule("1").weight.requires_grad


def test_views_use_the_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    original = PrivateRun._gradients

    def noted(run: PrivateRun, part: torch.Tensor) -> Any:
        if run.task.augment is not None:
            x = run.task.x[part[:1]].repeat_interleave(run.config.views, 0)
            with run._random_layers():
                y = run.task.augment(x, run.augmentation)
            seen.append((run.config.views, bool((y != x).any())))
        return original(run, part)

    monkeypatch.setattr(PrivateRun, "_gradients", noted)
    build(variant(views=4, augment={"crop": 2}, epochs=1), tmp_path)
    assert seen
    assert all(views == 4 for views, _ in seen)
    assert any(changed for _, changed in seen)


def test_a_list_of_budgets_becomes_variants() -> None:
    made = DPSGDVariant.model_validate({"train": "train", "epsilon": [1, 2.5], "id": "private"}).expanded()
    assert [(one.id, one.epsilon) for one in made] == [("private-eps1", 1), ("private-eps2.5", 2.5)]
    assert variant().expanded() == (variant(),)


def test_the_unfinished_training_lies_in_scratch_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(run: PrivateRun) -> None:
        raise KeyboardInterrupt

    original = PrivateRun._close_epoch
    monkeypatch.setattr(PrivateRun, "_close_epoch", lambda run: original(run) if run.state.steps < 6 else dies(run))
    with pytest.raises(KeyboardInterrupt):
        build(variant(), tmp_path, linear_model())
    assert len(list((tmp_path / "scratch").glob("dp-*.safetensors"))) == 1
    monkeypatch.undo()
    monkeypatch.setattr(dp_sgd, "epsilon", lambda *a: Budget(1.0, 1e-3, "prv", 1.0, 1.0, 1.1, a[0], a[1], a[2]))
    done = build(variant(), tmp_path, linear_model())
    whole = build(variant(), tmp_path / "other", linear_model())
    assert torch.equal(done.module.state_dict()["1.weight"], whole.module.state_dict()["1.weight"])
    assert not list((tmp_path / "scratch").glob("*"))
