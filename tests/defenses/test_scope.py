import builtins
import copy
import importlib.util
from typing import Any

import pytest
import torch
from auditorch.attacks.errors import MissingExtraError, UnsupportedError
from auditorch.defenses.config import TrainingConfig
from auditorch.defenses.lora import LoRA
from auditorch.defenses.scope import HeadScheme, reset_head, training_scope
from auditorch.defenses.training import fit
from torch import nn

from .toys import images, ring, state

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the extra peft is not installed")


def convolutional() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16),
            nn.ReLU(), nn.Linear(16, 2),
        ).eval()  # fmt: skip


@needs_peft
def test_lora_adds_a_matrix_of_low_rank_and_gives_the_structure_back() -> None:
    module, before = convolutional(), convolutional()
    x, y = images(40), torch.arange(40) % 2
    fit(module, x, y, config=TrainingConfig(epochs=4, batch_size=10, lr=0.01, scope=LoRA(rank=2, alpha=4)))
    assert list(module.state_dict()) == list(before.state_dict())
    assert [type(layer) for layer in module.modules()] == [type(layer) for layer in before.modules()]
    for name, most in (("0.weight", 2), ("4.weight", 2)):
        change = (module.get_parameter(name) - before.get_parameter(name)).detach().flatten(1)
        singular = torch.linalg.svdvals(change)
        assert singular[0] > 1e-3, f"{name} was not trained"
        assert (singular[most:] < 1e-5 * singular[0]).all(), f"{name} changed by more than rank {most}"
    for name in ("0.bias", "1.weight", "1.running_mean", "4.bias"):
        assert torch.equal(module.state_dict()[name], before.state_dict()[name]), f"{name} must be frozen"
    assert not torch.equal(module.get_parameter("6.weight"), before.get_parameter("6.weight")), "the head is trained"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert not any(layer.training for layer in module.modules())


@needs_peft
def test_lora_begins_at_the_base_and_merging_changes_no_answer() -> None:
    module, x = convolutional(), images(6)
    before = module(x).detach()
    with training_scope(module, LoRA(rank=3)) as parameters:
        module.eval()
        torch.testing.assert_close(module(x).detach(), before)
        assert sum(p.numel() for p in parameters) == 3 * (9 + 4) + 3 * (64 + 16) + (16 * 2 + 2)
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.05)
        changed = module(x).detach()
        assert not torch.allclose(changed, before, atol=1e-3)
    torch.testing.assert_close(module(x).detach(), changed, rtol=1e-4, atol=1e-5)


@needs_peft
def test_lora_counts_alpha_over_rank_repeats_and_follows_its_seed() -> None:
    x, y = ring(32)

    def trained(lora: LoRA) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        fit(module, x, y, config=TrainingConfig(epochs=1, batch_size=32, optimizer="sgd", lr=0.1, scope=lora))
        return state(module)[:16]

    start = trained(LoRA(rank=2, alpha=1e-9))
    one, two = trained(LoRA(rank=2, alpha=2)) - start, trained(LoRA(rank=2, alpha=4)) - start
    # After one step only B has moved, by a gradient that holds alpha / rank once; its effect holds it again.
    torch.testing.assert_close(two, 4 * one, rtol=1e-3, atol=1e-7)
    assert torch.equal(trained(LoRA(rank=2)), trained(LoRA(rank=2)))
    assert not torch.equal(trained(LoRA(rank=2)), trained(LoRA(rank=2, seed=1)))


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'auditorch\[peft\]'"),
        training_scope(convolutional(), LoRA()),
    ):
        pass


def test_lora_bad_arguments() -> None:
    for options in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}):
        with pytest.raises(UnsupportedError, match="LoRA needs"):
            LoRA(**options)  # pyright: ignore[reportArgumentType]


@needs_peft
def test_lora_needs_a_layer_before_the_head() -> None:
    with (
        pytest.raises(UnsupportedError, match="no layer before its head"),
        training_scope(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), LoRA()),
    ):
        pass


@pytest.mark.parametrize(
    ("scheme", "size"),
    [("zeros", 0.0), ("normal", 0.02), ("xavier_uniform", (2 / 320) ** 0.5), ("kaiming_normal", (2 / 256) ** 0.5),
     ("orthogonal", 1 / 16)],
)  # fmt: skip
def test_head_schemes_draw_what_they_say(scheme: HeadScheme, size: float) -> None:
    module = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 64))
    before = copy.deepcopy(module.state_dict())
    state_of_torch = torch.get_rng_state()
    reset_head(module, 3, scheme)
    assert torch.equal(torch.get_rng_state(), state_of_torch)
    assert torch.equal(module.state_dict()["0.weight"], before["0.weight"])
    weight = module.state_dict()["2.weight"]
    assert weight.std().item() == pytest.approx(size, rel=0.05)
    assert not module.state_dict()["2.bias"].any()
    if scheme == "orthogonal":
        torch.testing.assert_close(weight @ weight.T, torch.eye(64), atol=1e-5, rtol=0)
    first = weight.clone()
    reset_head(module, 3, scheme)
    assert torch.equal(module.state_dict()["2.weight"], first)


def test_head_schemes_refuse_heads_without_a_matrix() -> None:
    with pytest.raises(UnsupportedError, match="needs a weight matrix"):
        reset_head(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), 0, "zeros")
