"""AutoAttack: which attacks run, in which order, on whom."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.autoattack import AutoAttack
from auditorch.attacks.evasion.eot import EOT
from auditorch.attacks.evasion.fgsm import FGSM
from auditorch.attacks.threat import Norm, Threat
from torch import nn

from .oracles import linear_problem


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("standard", ["APGD", "APGDT", "FABT", "Square"]),
        ("plus", ["APGD", "APGD", "FAB", "Square", "APGDT", "FABT"]),
        ("rand", ["EOT", "EOT"]),
    ],
)
def test_the_protocol(version: str, names: list[str]) -> None:
    attack = AutoAttack(version)  # pyright: ignore[reportArgumentType]
    assert [type(member).__name__ for member in attack.members("linf", 10)] == names


def test_l1_has_larger_balls_five_restarts_and_five_targets() -> None:
    ce, targeted, fab, square = AutoAttack().members("l1", 10)
    assert (ce.restarts, ce.large_radius) == (5, True)  # pyright: ignore[reportAttributeAccessIssue]
    assert (targeted.n_targets, targeted.large_radius) == (5, True)  # pyright: ignore[reportAttributeAccessIssue]
    assert (fab.n_targets, square.queries) == (9, 5000)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 5])
def test_within_five_percent_of_the_optimum(norm: Norm, classes: int) -> None:
    problem = linear_problem(4, (1, 5, 5), classes)
    optimum = problem.distance(norm)
    eps = 1.05 * float(optimum.median())
    outcome = evaluate(AutoAttack(steps=40, queries=50), problem.model, problem.x, problem.y, Threat(norm, eps))
    assert outcome.success[1.05 * optimum <= eps * (1 + 1e-9)].all()
    assert not outcome.success[optimum > eps * (1 + 1e-5)].any()


def test_rand_averages_twenty_draws() -> None:
    problem = linear_problem(3, (1, 5, 5), 3)

    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return problem.model(x) + 0.01 * torch.randn(len(x), 3)

    threat = Threat("linf", 1.2 * float(problem.distance("linf").max()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outcome = evaluate(AutoAttack("rand", steps=10), Noisy(), problem.x, problem.y, threat)
    assert outcome.success.all()
    assert outcome.backwards % 20 == 0


def test_one_run_draws_robust_accuracy_against_forward_passes() -> None:
    """A sample that stands costs what is counted, and the passes that rank classes and confirm."""
    problem = linear_problem(8, (1, 5, 5), 4)
    attack, eps = AutoAttack(steps=6, queries=20), 1.1 * float(problem.distance("linf").median())
    whole = evaluate(attack, problem.model, problem.x, problem.y, Threat("linf", eps))
    assert whole.unit == "passes"
    assert 0 < int(whole.success.sum()) < 8
    assert whole.robust_accuracy_after(int(whole.spent.max())) == whole.robust_accuracy
    for row in range(8):
        part = problem.x[row : row + 1], problem.y[row : row + 1]
        one = evaluate(attack, problem.model, *part, Threat("linf", eps), ids=torch.tensor([row]))
        assert int(one.spent) == int(whole.spent[row])
        if not one.success:  # the clean pass; APGD-T's and FAB-T's ranking, the latter's bisection; four confirmations
            assert one.forwards == int(one.spent) + 1 + 2 + 10 + 4


def test_rand_counts_every_draw() -> None:
    problem = linear_problem(3, (1, 5, 5), 3)
    outcome = evaluate(AutoAttack("rand", steps=5), problem.model, problem.x, problem.y, Threat("linf", 1e-6))
    assert outcome.spent.tolist() == [2 * 20 * 6] * 3
    with pytest.raises(UnsupportedError, match="FGSM does not say what it spends"):
        EOT(FGSM()).trace(problem.model, problem.x, problem.y, Threat("linf", 0.1))


def test_targeted_threats_and_unknown_versions_are_refused() -> None:
    problem = linear_problem(2, (1, 4, 4), 2)
    with pytest.raises(UnsupportedError, match="apgd_t"):
        AutoAttack()(problem.model, problem.x, problem.y, Threat("linf", 0.1, targeted=True))
    with pytest.raises(UnsupportedError, match="standard, plus, rand"):
        AutoAttack("fast")  # pyright: ignore[reportArgumentType]
