"""HopSkipJump against closed forms: distances, counts, independence of the batch, starts."""

from __future__ import annotations

import itertools

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.hopskipjump import HopSkipJump
from auditorch.attacks.evasion.starts import TRIES, beyond, ranked, start_points
from auditorch.attacks.models import CountingModel
from auditorch.attacks.streams import Streams
from auditorch.attacks.threat import Norm, Threat
from torch import Tensor, nn

from .oracles import linear_problem
from .syncs import Syncs

CASES = [*itertools.product([1, 3], [(12,), (1, 6, 6)]), (8, (3, 5, 5))]


@pytest.mark.parametrize("norm", HopSkipJump.norms)
@pytest.mark.parametrize(("n", "shape"), CASES, ids=str)
def test_within_a_quarter_of_the_optimum(norm: Norm, n: int, shape: tuple[int, ...]) -> None:
    """With 3,000 queries. Two classes, so that there is one boundary to come close to."""
    problem = linear_problem(n, shape, 2, seed=1)
    outcome = evaluate(HopSkipJump(queries=3000), problem.model, problem.x, problem.y, Threat(norm, 0.1))
    ratio = outcome.distance / problem.distance(norm)
    assert (ratio <= 1.25).all()
    assert (ratio >= 1 - 1e-5).all()
    assert outcome.backwards == 0
    assert outcome.forwards <= n * 3000


@pytest.mark.parametrize("norm", HopSkipJump.norms)
@pytest.mark.parametrize(("shape", "seed"), [((1, 6, 6), 8), ((1, 6, 6), 22), ((3, 5, 5), 30), ((12,), 40)], ids=str)
def test_finds_the_nearest_of_several_boundaries(norm: Norm, shape: tuple[int, ...], seed: int) -> None:
    """Labels cannot tell which of three boundaries is nearest: a single start settles at whichever it meets."""
    problem = linear_problem(8, shape, 4, seed=seed)
    outcome = evaluate(HopSkipJump(), problem.model, problem.x, problem.y, Threat(norm, 0.1))
    assert (outcome.distance <= 1.25 * problem.distance(norm)).all()


def test_looks_beyond_the_boundaries_met_so_far() -> None:
    """Random points are taken for the class that outshines the others; without its normal those come to light."""
    problem = linear_problem(8, (1, 6, 6), 4, seed=22)
    weight = problem.model.get_parameter("1.weight").detach()
    normals = (weight[1] - weight[problem.y + (problem.y == 1)]).view(8, 1, 1, 6, 6)
    streams = Streams.from_seed(0, torch.arange(8))
    labels, along = [], []
    for known in (torch.zeros_like(normals), normals):
        points = beyond(problem.x, known, (0.0, 1.0), streams.fork(0), 24)
        assert ((points >= 0) & (points <= 1)).all()
        labels.append(problem.model(points.flatten(0, 1)).argmax(1).view(8, 24))
        along.append(((points - problem.x[:, None]) * normals).sum().item())
    rivals = problem.y != 1
    others = [(told[rivals] != 1).double().mean() for told in labels]
    assert others[1] > 3 * others[0]
    assert along[1] < 0.5 * along[0]


@pytest.mark.parametrize("norm", HopSkipJump.norms)
def test_more_queries_come_closer_and_none_are_made_beyond_the_limit(norm: Norm) -> None:
    problem = linear_problem(4, (1, 8, 8), 2)
    medians = []
    for queries in (150, 600, 4000):
        outcome = evaluate(HopSkipJump(queries=queries), problem.model, problem.x, problem.y, Threat(norm, 0.1))
        assert 0.75 * queries * 4 <= outcome.forwards <= queries * 4
        medians.append(float((outcome.distance / problem.distance(norm)).median()))
    assert medians[0] > medians[1] > medians[2]


def test_counts_every_query() -> None:
    problem, seen = linear_problem(2, (8,), 2), 0

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal seen
            seen += len(x)
            return problem.model(x)

    counting = CountingModel(Model(), screened=True)
    _, spent = HopSkipJump(queries=500).trace(counting, problem.x, problem.y, Threat("l2", 1e-6))
    assert counting.forwards == seen == int(spent.sum())


def test_what_was_spent_until_a_sample_fell_is_what_a_stopping_run_spends() -> None:
    problem = linear_problem(6, (1, 6, 6), 2)
    threat = Threat("l2", 1.3 * float(problem.distance("l2").median()))
    attack = HopSkipJump(queries=1500)
    x_adv, spent = attack.trace(problem.model, problem.x, problem.y, threat)
    inside = threat.distance(x_adv, problem.x) <= threat.eps
    assert inside.any()
    assert not inside.all()
    assert (spent[inside] < 1500).all()
    for queries in (700, 1000):
        again = HopSkipJump(queries=queries)(problem.model, problem.x, problem.y, threat)
        fell = threat.distance(again, problem.x) <= threat.eps
        # A budget below 2,000 follows a single start, so that the shorter run is the beginning of the longer one,
        # but for its last round, which is cut to what is left.
        assert torch.equal(fell[spent <= queries - 150], torch.ones_like(fell[spent <= queries - 150]))
    early = CountingModel(problem.model, screened=True)
    stopped, same = HopSkipJump(queries=1500, early_stop=True).trace(early, problem.x, problem.y, threat)
    assert torch.equal(threat.distance(stopped, problem.x) <= threat.eps, inside)
    torch.testing.assert_close(same, spent)
    assert early.forwards < 6 * 1500


def test_reaches_a_target_from_a_start_that_the_user_gives() -> None:
    problem = linear_problem(4, (10,), 3, seed=3)
    target = (problem.y + 1) % 3
    starts = linear_problem(12, (10,), 3, seed=3).x
    attack = HopSkipJump(queries=4000, starts=starts)
    outcome = evaluate(attack, problem.model, problem.x, target, Threat("l2", 1.0, targeted=True))
    assert (problem.model(outcome.x_adv).argmax(1) == target).all()
    optimum = problem.distance_to_each("l2")[torch.arange(4), target]
    assert (outcome.distance <= 1.25 * optimum).all()


class Shy(nn.Module):
    """Class 0 unless the mean is near that of ``secret``."""

    def __init__(self, secret: Tensor) -> None:
        super().__init__()
        self.secret = secret

    def forward(self, x: Tensor) -> Tensor:
        near = 0.3 - (x - self.secret).flatten(1).abs().amax(1)
        return torch.stack([torch.zeros_like(near), near], dim=1)


def test_where_noise_fails_a_given_start_helps_and_without_one_the_input_comes_back() -> None:
    x, secret = torch.full((2, 1, 8, 8), 0.5), torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, threat = torch.zeros(2, dtype=torch.int64), Threat("l2", 0.1)
    alone = HopSkipJump(queries=300)(Shy(secret), x, y, threat)
    assert torch.equal(alone, x)
    helped = HopSkipJump(queries=300, starts=secret[None])(Shy(secret), x, y, threat)
    assert (Shy(secret)(helped).argmax(1) == 1).all()


def test_starts_belong_to_the_sample_and_differ_in_class() -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([7, 5, 9])
    points = start_points(x, (0.0, 1.0), Streams.from_seed(0, ids), None)
    assert points.shape == (3, TRIES, 1, 8, 8)
    alone = start_points(x[1:2], (0.0, 1.0), Streams.from_seed(0, ids[1:2]), None)
    assert torch.equal(alone[0], points[1])
    labels = torch.tensor([[1, 1, 1, 2, 0, 3]])
    near = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.5, 5.0]).view(1, 6, 1)
    places = ranked(torch.zeros(1, 1), near, labels != 0, labels, Threat("linf", 1.0))
    assert near.flatten()[places[0]].tolist() == [1.0, 4.0, 5.0, 2.0, 3.0, 0.5]


@pytest.mark.parametrize(
    "options", [{"queries": 99}, {"first_probes": 1}, {"reach": 0.0}, {"memory": 1.0}, {"smooth": 4}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UnsupportedError):
        HopSkipJump(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("norm", "most"), [("l2", 0.8), ("linf", 0.9)])
def test_smooth_noise_helps_where_the_boundary_is_smooth(norm: Norm, most: float) -> None:
    """A linear model whose weights vary slowly over the image, as those of trained networks do."""
    weights = torch.linspace(-1, 1, 16).expand(16, 16).flatten()
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    model.load_state_dict({"1.weight": torch.stack([weights, -weights]), "1.bias": torch.zeros(2)})
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    y = model(x).argmax(1)
    smooth, white = (
        evaluate(HopSkipJump(queries=600, smooth=side), model, x, y, Threat(norm, 0.1)).distance.median()
        for side in (0, 1)
    )
    assert smooth < most * white


@pytest.mark.parametrize("norm", HopSkipJump.norms)
def test_the_host_waits_for_nothing_within_a_round(norm: Norm) -> None:
    problem = linear_problem(2, (12,), 3)
    counts = []
    for queries in (500, 2500):
        with Syncs() as syncs:
            HopSkipJump(queries=queries)(problem.model, problem.x, problem.y, Threat(norm, 0.1))
        counts.append(syncs.count)
    assert counts[0] == counts[1] <= 8
