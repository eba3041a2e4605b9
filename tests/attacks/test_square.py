"""Square: finds boundaries from scores alone, and spends no query on proposals that change nothing."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.square import Square
from auditorch.attacks.evasion.windows import bump, outside, pixels
from auditorch.attacks.streams import Streams
from auditorch.attacks.threat import Norm, Threat

from .oracles import linear_problem
from .syncs import Syncs


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
    """By default: down to single pixels, as random weights have no neighbourhoods for wider windows to match."""
    problem = linear_problem(n, shape, 2, seed=n)
    optimum = problem.distance(norm)
    attack = Square(queries)
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


@pytest.mark.parametrize(
    ("shape", "queries", "finest"),
    [((1, 3, 3), 180, 1), ((1, 3, 3), 179, 3), ((3, 2, 2), 240, 1), ((3, 2, 2), 239, 3), ((36,), 60, 1)],
)
def test_single_features_by_default_in_vectors_and_where_queries_abound(
    shape: tuple[int, ...], queries: int, finest: int
) -> None:
    problem = linear_problem(2, shape, 2)
    threat = Threat("l2", 0.9 * float(problem.distance("l2").min()))
    found = [
        attack(problem.model, problem.x, problem.y, threat)
        for attack in (Square(queries), Square(queries, finest=finest), Square(queries, finest=4 - finest))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("norm", "shape", "a_query"),
    [("linf", (3, 6, 6), 1), ("l2", (3, 6, 6), 0), ("l1", (1, 6, 6), 0)],
)
def test_on_a_device_the_host_waits_for_who_fell_only_every_eighth_query(
    norm: Norm, shape: tuple[int, ...], a_query: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path that a GPU takes, walked on the CPU. In linf each query also asks which proposals are not idle."""
    monkeypatch.setattr("auditorch.attacks.evasion.square.deferred", lambda tensor: True)
    problem = linear_problem(4, shape, 2)
    threat, counts = Threat(norm, 0.3 * float(problem.distance(norm).min())), []
    for queries in (129, 257):
        with Syncs() as syncs:
            Square(queries, finest=3)(problem.model, problem.x, problem.y, threat)
        counts.append(syncs.count)
    assert (counts[1] - counts[0]) / 128 == a_query + 1 / 8


@pytest.mark.parametrize("norm", Square.norms)
def test_looking_seldom_changes_neither_points_nor_counts(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that fell stays where it fell, and takes no more queries, until it is looked at."""
    problem = linear_problem(12, (1, 6, 6), 2)
    threat = Threat(norm, 2.0 * float(problem.distance(norm).median()))
    attack = Square(200)
    often = attack.trace(problem.model, problem.x, problem.y, threat)
    monkeypatch.setattr("auditorch.attacks.evasion.square.deferred", lambda tensor: True)
    seldom = attack.trace(problem.model, problem.x, problem.y, threat)
    assert torch.equal(often[0], seldom[0])
    assert torch.equal(often[1], seldom[1])
    assert len(often[1].unique()) > 3


def test_colour_in_l1_does_not_depend_on_the_batch() -> None:
    """The projection of a batch follows its longest row; in float32 that showed in the last digits, and then in all."""
    problem = linear_problem(6, (3, 6, 6), 2)
    threat = Threat("l1", 0.9 * float(problem.distance("l1").min()))
    linear = problem.model.double()  # so that the model's own rounding does not tell batches apart either
    whole, alone = (
        [
            Square(100)(
                lambda z: linear(z.double()), problem.x[i], problem.y[i], threat, generator=Streams.from_seed(0, i)
            )
            for i in torch.arange(6).split(size)
        ]
        for size in (6, 1)
    )
    assert torch.equal(whole[0], torch.cat(alone))


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


def test_pixels_that_two_windows_share() -> None:
    places = torch.tensor([i * 7 + j for i in range(5) for j in range(5)])  # of windows 2 x 3 in images 6 x 7
    corner, other = places[:, None].expand(25, 25), places[None].expand(25, 25)
    here, there = pixels(corner, 2, 3, 7), pixels(other, 2, 3, 7)
    assert torch.equal(outside(corner, other, 2, 3, 7), (here[..., None] != there[..., None, :]).all(-1))


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(3, 5, 5), (14,)])
def test_books_of_what_is_left_of_eps_agree_with_the_points(norm: Norm, shape: tuple[int, ...]) -> None:
    """Windows overlap, meet the bounds and coincide; every point sent to the model stays in the ball and uses it up."""
    problem = linear_problem(6, shape, 2)
    threat, sent = Threat(norm, 0.5 * float(problem.distance(norm).min())), []

    def spied(z: torch.Tensor) -> torch.Tensor:
        sent.append(z.clone())
        return problem.model(z)

    for finest in (1, 3):
        Square(129, finest=finest)(spied, problem.x, problem.y, threat)
    assert all(threat.contains(z, problem.x).all() for z in sent)
    used = torch.stack([threat.distance(z, problem.x) for z in sent[1:]]) / threat.eps
    assert used.median() > 0.999


def test_l0_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="linf, l2, l1"):
        Square()(lambda z: z.flatten(1), torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), Threat("l0", 2))
