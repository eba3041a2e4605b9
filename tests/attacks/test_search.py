"""The active set: what drops out, what it saves, and that no attempt gets worse."""

from __future__ import annotations

import math

import pytest
import torch
from auditorch.attacks.attack import Attack
from auditorch.attacks.engine import evaluate
from auditorch.attacks.evasion.apgd import APGD
from auditorch.attacks.evasion.fgsm import FGSM
from auditorch.attacks.evasion.mifgsm import MIFGSM
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.losses import cross_entropy
from auditorch.attacks.search import ActiveSet, bucket
from auditorch.attacks.threat import Threat

from .oracles import linear_problem

PROBLEM = linear_problem(40, (1, 6, 6), 4)
HALF = Threat("linf", float(PROBLEM.distance("linf").quantile(0.6)))


def test_record_keeps_the_first_find_and_compact_drops_it() -> None:
    search = ActiveSet(torch.zeros(4, 2), torch.tensor([True, False, True, True]))
    assert search.index.tolist() == [0, 2, 3]
    search.record(torch.full((3, 2), 1.0), torch.tensor([False, True, False]))
    assert search.success.tolist() == [False, True, True, False]
    keep = search.compact()
    assert keep is not None
    assert keep.tolist() == [0, 2]
    assert search.compact() is None
    search.record(torch.full((2, 2), 2.0), torch.tensor([False, True]))
    search.attempt(torch.full((2, 2), 3.0), torch.tensor([0.5, 9.0]))
    search.attempt(torch.full((2, 2), 4.0), torch.tensor([0.4, 9.0]))
    assert search.x_adv[:, 0].tolist() == [3.0, 0.0, 1.0, 2.0]
    assert search.restart()
    assert search.index.tolist() == [0]


def test_bucket_sizes_are_few_and_never_too_small() -> None:
    sizes = [bucket(n) for n in range(2049)]
    assert all(size >= n for n, size in enumerate(sizes))
    assert all(size <= max(1.25 * n, 8) for n, size in enumerate(sizes))
    for low in (64, 128, 512):
        assert len({bucket(n) for n in range(low + 1, 2 * low + 1)}) <= 4


@pytest.mark.parametrize(("attack", "most"), [(PGD(), 0.8), (APGD(), 0.7)], ids=["pgd", "apgd"])
def test_fooled_samples_cost_nothing_more(attack: PGD | APGD, most: float) -> None:
    outcome = evaluate(attack, PROBLEM.model, PROBLEM.x, PROBLEM.y, HALF)
    assert 0.3 <= outcome.robust_accuracy <= 0.5
    work = (outcome.forwards + 2 * outcome.backwards) / (3 * attack.steps * len(PROBLEM.x))
    assert work <= most
    left = math.floor(outcome.robust_accuracy * len(PROBLEM.x))
    assert outcome.backwards >= left * attack.steps  # those not fooled get all their steps


@pytest.mark.parametrize(
    "attack", [FGSM(random_start=True), PGD(), PGD(restarts=3), MIFGSM(), APGD(restarts=2)], ids=str
)
def test_a_failed_attempt_is_still_the_best_of_its_kind(attack: Attack) -> None:
    """Within half the optimum nothing can be found; what comes back must at least raise the loss."""
    threat = Threat("linf", 0.5 * float(PROBLEM.distance("linf").min()))
    x_adv = attack(PROBLEM.model, PROBLEM.x, PROBLEM.y, threat)
    before, after = (cross_entropy(PROBLEM.model(x), PROBLEM.y) for x in (PROBLEM.x, x_adv))
    assert (after > before).all()
    assert threat.contains(x_adv, PROBLEM.x).all()


def test_fixed_work_for_training_attacks_misclassified_samples_too() -> None:
    y = (PROBLEM.y + 1) % 4
    x_adv = PGD(steps=5, early_stop=False)(PROBLEM.model, PROBLEM.x, y, HALF)
    before, after = (cross_entropy(PROBLEM.model(x), y) for x in (PROBLEM.x, x_adv))
    assert (after > before).all()


def test_restarts_help_and_never_hurt() -> None:
    once, often = (
        evaluate(PGD(steps=2, step_size=HALF.eps, restarts=n), PROBLEM.model, PROBLEM.x, PROBLEM.y, HALF)
        for n in (1, 20)
    )
    assert (often.success | ~once.success).all()
    assert often.success.sum() > once.success.sum()
