"""Square: finds boundaries from scores alone, and spends no query on proposals that change nothing."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.square import Square, _bump
from auditorch.attacks.threat import Norm, Threat

from .oracles import linear_problem


@pytest.mark.parametrize(
    ("norm", "ratio", "n", "shape"),
    [
        ("linf", 1.25, 1, (1, 6, 6)),
        ("linf", 1.25, 3, (12,)),
        ("linf", 1.25, 8, (3, 5, 5)),
        ("l2", 1.6, 3, (1, 6, 6)),
        ("l1", 3.0, 3, (1, 6, 6)),
    ],
)
def test_reaches_linear_boundaries(norm: Norm, ratio: float, n: int, shape: tuple[int, ...]) -> None:
    """In l2 and l1 a proposal paints bumps of three pixels or more, too coarse for the weights of a random model."""
    problem = linear_problem(n, shape, 2, seed=n)
    optimum = problem.distance(norm)
    for eps in (ratio * float(optimum.max()), ratio * float(optimum.min())):
        outcome = evaluate(Square(queries=1000), problem.model, problem.x, problem.y, Threat(norm, eps))
        assert outcome.success[ratio * optimum <= eps * (1 + 1e-9)].all()
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


def test_window_shares_follow_the_published_schedule() -> None:
    from auditorch.attacks.evasion.square import _Search

    search = _Search(lambda x: x, Threat("linf", 0.1), queries=10_000, p_init=0.8)
    assert [search.share(q) for q in (1, 11, 51, 201, 8001)] == [0.8, 0.4, 0.2, 0.1, 0.8 / 512]


def test_bumps_are_highest_in_the_middle() -> None:
    bump = _bump(5, 5, 2)
    assert torch.allclose(bump[2, 2], torch.tensor(1 + 1 / 4 + 1 / 9))
    assert torch.allclose(bump[0], torch.full((5,), 1 / 9))


def test_l0_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="linf, l2, l1"):
        Square()(lambda z: z.flatten(1), torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), Threat("l0", 2))
