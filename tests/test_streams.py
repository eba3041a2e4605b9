"""Random streams: statistics, and independence of batch, order and selection."""

import torch
from auditorch.attacks.streams import Streams


def test_draws_do_not_depend_on_batch_or_order() -> None:
    ids = torch.tensor([7, 3, 11, 5])
    together = Streams.from_seed(1, ids).normal((3, 4))
    alone = torch.cat([Streams.from_seed(1, ids[i : i + 1]).normal((3, 4)) for i in (2, 0)])
    assert torch.equal(together[[2, 0]], alone)


def test_selection_continues_where_the_sample_was() -> None:
    streams = Streams.from_seed(0, torch.arange(5))
    streams.uniform((2,))
    kept = streams.select(torch.tensor([4, 1]))
    assert torch.equal(kept.uniform((6,)), streams.uniform((6,))[[4, 1]])


def test_distributions_have_the_right_moments() -> None:
    streams = Streams.from_seed(3, torch.arange(400))
    uniform, normal, signs = streams.uniform((500,)), streams.normal((500,)), streams.signs((500,))
    assert abs(uniform.mean() - 0.5) < 0.003
    assert abs(uniform.var() - 1 / 12) < 0.001
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(normal.mean()) < 0.01
    assert abs(normal.var() - 1) < 0.01
    assert abs(signs.mean()) < 0.01
    correlation = torch.corrcoef(uniform)
    assert (correlation - torch.eye(400)).abs().max() < 0.25


def test_integers_cover_their_range_evenly() -> None:
    counts = Streams.from_seed(0, torch.arange(100)).integers(7, (1000,)).flatten().bincount(minlength=7)
    assert len(counts) == 7
    assert (counts / 100_000 - 1 / 7).abs().max() < 0.005


def test_forks_and_seeds_differ() -> None:
    streams = Streams.from_seed(0, torch.arange(50))
    draws = [streams.fork(1), streams.fork(2), Streams.from_seed(1, torch.arange(50)), streams]
    values = [s.uniform((20,)) for s in draws]
    for i, first in enumerate(values):
        for second in values[i + 1 :]:
            assert (first != second).float().mean() > 0.99
