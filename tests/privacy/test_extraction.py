"""Copies of a known model: they come to agree with it, within the budget, from probabilities or labels."""

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy.extraction.copying import CopyConfig, Extraction, steal, surprise
from auditorch.privacy.shadow.fresh import fresh
from torch import Tensor, nn


def victim() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).eval()


def copy() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))


def pool(n: int = 1500, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def agreement(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    return float((a(x).argmax(1) == b(x).argmax(1)).float().mean())


@pytest.mark.parametrize("attack", ["knockoff", "knockoff_adaptive", "copycat"])
def test_a_copy_comes_to_agree_within_its_budget(attack: Extraction) -> None:
    asked: list[Tensor] = []

    def ask(x: Tensor) -> Tensor:
        asked.append(x)
        return victim()(x)

    thief, untrained = copy(), agreement(copy().eval(), victim(), pool(seed=9))
    stolen = steal(ask, thief, pool(), CopyConfig(attack, budget=600, epochs=15, lr=1e-2, rounds=3))
    assert untrained < 0.5
    assert agreement(stolen.module, victim(), pool(seed=9)) > 0.78
    assert sum(map(len, asked)) == 600 == len(stolen.asked.unique())
    assert torch.equal(torch.cat(asked), pool()[stolen.asked])
    assert not stolen.module.training


def test_more_queries_give_a_better_copy_and_probabilities_more_than_labels() -> None:
    def divergence(attack: Extraction, budget: int) -> float:
        stolen = steal(victim(), copy(), pool(), CopyConfig(attack, budget=budget, epochs=15, lr=1e-2))
        with torch.no_grad():
            return float(surprise(victim()(pool(seed=9)), stolen.module(pool(seed=9))).mean())

    assert divergence("knockoff", 800) < 0.7 * divergence("knockoff", 80)
    assert divergence("knockoff", 400) < divergence("copycat", 400)


def test_adaptive_rounds_ask_where_the_copy_is_least_sure() -> None:
    """A pool of mostly clear cases: the second round must prefer the few near the boundary."""
    clear = torch.cat([torch.full((300, 1), 3.0), torch.full((300, 1), -3.0)])
    close = 0.2 * torch.randn(60, 1, generator=torch.Generator().manual_seed(1))
    line = nn.Linear(1, 2)
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        line.bias.zero_()
    config = CopyConfig("knockoff_adaptive", budget=120, rounds=2, epochs=150, lr=0.05)
    stolen = steal(line, fresh(nn.Linear(1, 2), 0), torch.cat([clear, close]), config)
    assert int((stolen.asked[60:] >= 600).sum()) > 45
    assert int((stolen.asked[:60] >= 600).sum()) < 15


def test_the_surprise_of_a_perfect_copy_is_nought() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    assert surprise(logits, logits + 5).item() == pytest.approx(0, abs=1e-6)
    p, q = logits.softmax(1), torch.tensor([[0.0, 1.0, 0.0]]).softmax(1)
    expected = float((p * (p / q).log()).sum())
    assert surprise(logits, torch.tensor([[0.0, 1.0, 0.0]])).item() == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="budget is 2000 queries, but the attacker's pool has 1500"):
        steal(victim(), copy(), pool(), CopyConfig(budget=2000))
    with pytest.raises(UnsupportedError, match="at least 1"):
        CopyConfig(budget=0)
    with pytest.raises(UnsupportedError, match="choose one of knockoff"):
        CopyConfig("theft")  # pyright: ignore[reportArgumentType]
