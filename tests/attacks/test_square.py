"""Square: finds boundaries from scores alone, and spends no query on proposals that change nothing."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.square import Square
from auditorch.attacks.evasion.windows import bump
from auditorch.attacks.threat import Norm, Threat

from .oracles import linear_problem


@pytest.mark.parametrize(
    ("norm", "n", "shape", "queries"),
    [
        ("linf", 1, (1, 6, 6), 1000),
        ("linf", 3, (12,), 1000),
        ("linf", 8, (3, 5, 5), 1000),
        ("l2", 1, (1, 5, 5), 1200),
        ("l2", 3, (12,), 1200),
        ("l2", 8, (3, 3, 3), 1200),
        ("l1", 1, (1, 6, 6), 2500),
        ("l1", 3, (12,), 1200),
        ("l1", 8, (3, 3, 3), 2000),
    ],
)
def test_within_a_quarter_of_the_optimum(norm: Norm, n: int, shape: tuple[int, ...], queries: int) -> None:
    """Down to single pixels: the weights of a random model have no neighbourhoods for wider windows to match."""
    problem = linear_problem(n, shape, 2, seed=n)
    optimum = problem.distance(norm)
    attack = Square(queries, finest=1)
    for eps in (1.25 * float(optimum.max()), 1.25 * float(optimum.min())):
        outcome = evaluate(attack, problem.model, problem.x, problem.y, Threat(norm, eps))
        assert outcome.success[1.25 * optimum <= eps * (1 + 1e-9)].all()
        assert not outcome.success[optimum > eps * (1 + 1e-5)].any()
        assert outcome.backwards == 0


def test_idle_proposals_cost_nothing() -> None:
    """On a grey image every second proposal repeats a colour, once windows are single pixels."""
    problem = linear_problem(4, (1, 6, 6), 2)
    threat = Threat("linf", 0.5 * float(problem.distance("linf").min()))
    outcome = evaluate(Square(queries=1000), problem.model, problem.x, problem.y, threat)
    assert not outcome.success.any()
    assert 0.3 * 4000 < outcome.queries < 0.7 * 4000


def test_targeted() -> None:
    problem = linear_problem(6, (1, 6, 6), 2)
    threat = Threat("linf", 1.25 * float(problem.distance("linf").max()), targeted=True)
    assert evaluate(Square(queries=1000), problem.model, problem.x, 1 - problem.y, threat).success.all()


def test_windows_of_three_pixels_are_too_coarse_for_single_weights() -> None:
    """What ``finest`` is for."""
    problem = linear_problem(3, (1, 6, 6), 2, seed=3)
    threat = Threat("l1", 1.25 * float(problem.distance("l1").max()))
    found = [
        evaluate(Square(600, finest=finest), problem.model, problem.x, problem.y, threat).success.sum()
        for finest in (3, 1)
    ]
    assert found[0] < found[1]
    with pytest.raises(UnsupportedError, match="odd number"):
        Square(finest=2)


def test_mass_moves_between_two_windows() -> None:
    """Everything lies in the one pixel that counts against the attack; only a second window can take it away."""
    weight = torch.zeros(2, 1, 3, 3)
    weight[0, 0, 0, 0], weight[1, 0, 2, 2] = 1.0, 1.0
    model = lambda x: (x[:, None] * weight).flatten(2).sum(2) + torch.tensor([0.0, -0.18])  # noqa: E731
    x, y = torch.full((4, 1, 3, 3), 0.5), torch.zeros(4, dtype=torch.int64)
    outcome = evaluate(Square(300, finest=1), model, x, y, Threat("l1", 0.25))
    assert outcome.success.all()


def test_window_shares_follow_the_published_schedule() -> None:
    from auditorch.attacks.evasion.square import _Search

    search = _Search(lambda x: x, Threat("linf", 0.1), queries=10_000, p_init=0.8, finest=3)
    assert [search.share(q) for q in (1, 11, 51, 201, 8001)] == [0.8, 0.4, 0.2, 0.1, 0.8 / 512]


def test_bumps_are_highest_in_the_middle() -> None:
    hill = bump(5, 5, 2)
    assert torch.allclose(hill[2, 2], torch.tensor(1 + 1 / 4 + 1 / 9))
    assert torch.allclose(hill[0], torch.full((5,), 1 / 9))


def test_l0_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="linf, l2, l1"):
        Square()(lambda z: z.flatten(1), torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), Threat("l0", 2))
