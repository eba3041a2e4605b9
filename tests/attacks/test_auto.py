"""Auto against linear optima and against what longer attacks find."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.evasion.apgd import APGD, APGDT
from auditorch.attacks.evasion.auto import Auto
from auditorch.attacks.threat import Norm, Threat
from torch import Tensor, nn

from .oracles import linear_problem


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("n", "shape", "classes"), [(1, (1, 6, 6), 2), (3, (12,), 3), (8, (3, 5, 5), 7)])
def test_within_five_percent_of_the_optimum(norm: Norm, n: int, shape: tuple[int, ...], classes: int) -> None:
    problem = linear_problem(n, shape, classes, seed=n)
    optimum = problem.distance(norm)
    for eps in (1.05 * float(optimum.max()), 1.05 * float(optimum.min())):
        outcome = evaluate(Auto(focus_queries=300), problem.model, problem.x, problem.y, Threat(norm, eps))
        assert outcome.success[1.05 * optimum <= eps * (1 + 1e-9)].all()
        assert not outcome.success[optimum > eps * (1 + 1e-5)].any()


def test_a_targeted_threat_is_reached_at_its_own_optimum() -> None:
    problem = linear_problem(6, (1, 6, 6), 2)
    target, optimum = 1 - problem.y, problem.distance("linf")
    threat = Threat("linf", 1.05 * float(optimum.max()), targeted=True)
    assert evaluate(Auto(focus_queries=300), problem.model, problem.x, target, threat).success.all()


@pytest.fixture(scope="module")
def crooked() -> tuple[nn.Module, Tensor, Tensor]:
    """A random two-layer network and inputs labelled by it, so that every label is right."""
    torch.manual_seed(1)
    first = nn.Linear(64, 96)
    model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(96, 10)).eval()
    with torch.no_grad():
        first.weight.mul_(3)
        x = torch.rand(96, 1, 8, 8)
        return model, x, model(x).argmax(1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.012), ("l2", 0.07), ("l1", 0.35)])
def test_finds_what_five_times_the_passes_of_apgd_find(
    crooked: tuple[nn.Module, Tensor, Tensor], norm: Norm, eps: float
) -> None:
    model, x, y = crooked
    threat = Threat(norm, eps)
    ours = evaluate(Auto(), model, x, y, threat)
    union = torch.zeros(len(x), dtype=torch.bool)
    passes = 0
    for attack in (APGD(loss="ce"), APGD(loss="dlr"), APGDT()):
        outcome = evaluate(attack, model, x, y, threat)
        union |= outcome.success
        passes += outcome.backwards
    assert 0.1 < float(union.float().mean()) < 0.9
    assert int((union & ~ours.success).sum()) == 0
    assert ours.backwards < passes / 5


def test_long_runs_go_only_to_nearly_fooled_samples(crooked: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = crooked
    threat = Threat("linf", 0.01)
    costs = [
        evaluate(Auto(focus=focus, focus_queries=0), model, x, y, threat).backwards
        for focus in (0.0, 0.1, float("inf"))
    ]
    assert costs[0] < costs[1] < costs[2]


def test_hopeless_samples_are_left_alone_after_three_targets(crooked: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = crooked
    outcome = evaluate(Auto(), model, x, y, Threat("linf", 1e-5))
    assert not outcome.success.any()
    assert outcome.backwards == 4 * 20 * len(x)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.012), ("l1", 0.35)])
def test_what_it_says_of_each_sample_adds_up_to_all_its_passes(
    crooked: tuple[nn.Module, Tensor, Tensor], norm: Norm, eps: float
) -> None:
    """Ascents, APGD and Square; the engine counts what really passes, here also of samples alone in their batch."""
    model, x, y = crooked
    attack = Auto(steps=6, focus_steps=8, focus_restarts=2, focus_queries=30, focus=0.5)
    together = evaluate(attack, model, x, y, Threat(norm, eps))
    assert together.unit == "passes"
    assert together.forwards == int(together.spent.sum())
    for row in (0, int(together.spent.argmax()), int(together.success.nonzero()[0])):
        ids = torch.tensor([row])
        alone = evaluate(attack, model, x[row : row + 1], y[row : row + 1], Threat(norm, eps), ids=ids)
        assert alone.forwards == int(together.spent[row])
    longest = int(together.spent.max())
    assert together.robust_accuracy_after(0) == 1
    assert together.robust_accuracy_after(2) > together.robust_accuracy_after(longest)
    assert together.robust_accuracy_after(longest) == together.robust_accuracy
