"""Lower bounds on epsilon: right with the confidence they state, and broken trainings caught."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy import clipping
from auditorch.privacy.accounting import epsilon
from auditorch.privacy.auditing.audit import CanaryAudit, audit_in_many_runs, audit_in_one_run, loss_scores
from auditorch.privacy.auditing.bounds import many_run_bound, one_run_bound, one_run_p_value
from auditorch.privacy.auditing.canaries import PlantedInputs, plant
from auditorch.privacy.dp_sgd import DPConfig, dp_fine_tune
from numpy.typing import NDArray
from scipy.stats import binom, norm
from torch import Tensor, nn

DELTA = 1e-5


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Of one Gaussian mechanism with signal to noise ``mu`` (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    low, high = 0.0, 200.0
    for _ in range(80):
        middle = (low + high) / 2
        spent = norm.cdf(mu / 2 - middle / mu) - math.exp(middle) * norm.cdf(-mu / 2 - middle / mu)
        low, high = (middle, high) if spent > delta else (low, middle)
    return low


def coins(m: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    return rng.random(m) < 0.5


def test_the_bound_for_perfect_guesses_is_the_binomial_s() -> None:
    included = np.arange(1000) % 2 == 0
    found = one_run_bound(included.astype(np.float64), included, delta=0.0)
    # All right, at a fifth of 5 % error: p^r = 0.01 with p = 1 / (1 + exp(-eps)).
    right = 0.01 ** (1 / found.guesses)
    assert found.correct == found.guesses
    assert found.epsilon == pytest.approx(math.log(right / (1 - right)), abs=1e-6)
    assert found.epsilon == pytest.approx(found.highest)
    assert found.epsilon > 4.5


@pytest.mark.parametrize(("m", "r", "v"), [(6, 4, 3), (5, 5, 5), (8, 6, 1)])
def test_the_p_value_is_the_worst_case_of_the_theorem(m: int, r: int, v: int) -> None:
    eps, delta = 0.7, 0.01
    q = math.exp(eps) / (1 + math.exp(eps))
    mass = [binom.pmf(k, r, q) for k in range(r + 1)]
    worst = max(sum(mass[v - i : v]) / i for i in range(1, v + 1))
    assert one_run_p_value(m, r, v, eps, delta) == pytest.approx(min(1.0, sum(mass[v:]) + 2 * m * delta * worst))
    assert one_run_p_value(m, r, v, eps, 0.0) == pytest.approx(sum(mass[v:]))


def test_randomised_response_is_bounded_closely_and_seldom_wrongly() -> None:
    """Each canary's coin is shown truly with probability e / (1 + e): epsilon is exactly 1."""
    rng, truth = np.random.default_rng(1), math.e / (1 + math.e)
    found = []
    for _ in range(100):
        included = coins(2000, rng)
        told = np.where(rng.random(2000) < truth, included, ~included)
        found.append(one_run_bound(told + 1e-6 * rng.random(2000), included, delta=0.0).epsilon)
    assert np.mean(np.array(found) > 1) <= 0.05
    assert np.median(found) > 0.75


@pytest.mark.parametrize("mu", [0.5, 1.5, 3.0])
def test_a_gaussian_mechanism_is_never_said_to_leak_more_than_it_does(mu: float) -> None:
    rng, truth = np.random.default_rng(2), gaussian_epsilon(mu, DELTA)
    found = []
    for _ in range(30):
        included = coins(1000, rng)
        found.append(one_run_bound(mu * included + rng.standard_normal(1000), included, DELTA).epsilon)
    assert max(found) < truth
    if mu > 1:
        assert np.median(found) > 0.15 * truth


def test_many_runs_of_a_gaussian_mechanism_meet_its_epsilon_from_below() -> None:
    rng, mu = np.random.default_rng(3), 1.0
    truth = gaussian_epsilon(mu, DELTA)
    found = [many_run_bound(rng.normal(mu, 1, 2000), rng.normal(0, 1, 2000), DELTA).epsilon for _ in range(20)]
    assert max(found) < truth
    assert np.median(found) > 0.3 * truth


def test_many_runs_told_apart_by_all_give_the_clopper_pearson_bound() -> None:
    found = many_run_bound(np.arange(10.0, 30), np.arange(-20.0, 0), 0.0)
    upper = 1 - 0.025 ** (1 / 10)  # no error in the ten runs of each kind that are judged
    assert found.epsilon == pytest.approx(math.log((1 - upper) / upper))
    assert (found.guesses, found.correct) == (20, 20)
    assert found.epsilon == pytest.approx(found.highest)


def test_without_a_difference_nothing_is_claimed() -> None:
    rng = np.random.default_rng(4)
    wrong = sum(many_run_bound(rng.normal(size=60), rng.normal(size=60), DELTA).epsilon > 0 for _ in range(60))
    assert wrong <= 3
    included = coins(400, rng)
    assert one_run_bound(rng.standard_normal(400), included, DELTA).epsilon < 0.3


def test_many_runs_call_the_trainer_with_and_without() -> None:
    calls = []

    def train(present: bool, run: int) -> float:
        calls.append((present, run))
        return 5.0 * present + run * 1e-3

    found = audit_in_many_runs(train, runs=12, delta=0.0)
    assert found.epsilon > 0
    assert [present for present, _ in calls].count(True) == 12
    assert len({run for _, run in calls}) == 24


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return module, x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def test_a_canary_adds_nothing_to_the_output_and_its_gradient_is_its_own() -> None:
    module, x, y = problem()
    planted = plant(module, x, y, classes=3, canaries=10, seed=0, strength=50.0)
    rows = planted.inputs[torch.arange(len(planted.inputs))]
    with torch.no_grad():
        planted.module.probe.weight.normal_()
    assert torch.allclose(planted.module(rows)[: len(x)], module(x))
    assert torch.allclose(planted.module(rows)[len(x) :], module(x[:1]).expand(int(planted.included.sum()), -1))
    last = len(planted.inputs) - 1
    nn.functional.cross_entropy(planted.module(rows[last:]), planted.y[last:]).backward()
    gradient = planted.module.probe.weight.grad
    assert gradient is not None
    moved = gradient.norm(dim=0).nonzero().flatten().tolist()
    assert moved == planted.included.nonzero().flatten().tolist()[-1:]
    rest = torch.stack([p.grad.norm() for p in planted.module.module.parameters() if p.grad is not None]).norm()
    assert gradient.norm() > 10 * rest
    assert 2 < int(planted.included.sum()) < 9


def test_inputs_of_any_shape_and_kind_pass_through() -> None:
    module = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    x = torch.randint(0, 9, (6, 5))
    planted = plant(module, x, torch.zeros(6, dtype=torch.int64), classes=3, canaries=4, seed=1)
    rows = planted.inputs[torch.arange(6)]
    assert torch.allclose(planted.module(rows), module(x))


@dataclass(frozen=True)
class Claimed:
    epsilon: float
    delta: float


CONFIG = DPConfig(noise_multiplier=3.0, delta=DELTA, epochs=8, batch_size=60, lr=0.1, max_grad_norm=1.0, seed=1)
"""Batches of 60 of about 800 records."""


def claim(n: int) -> Claimed:
    rate = CONFIG.batch_size / n
    budget = epsilon(3.0, rate, math.ceil(CONFIG.epochs / rate), DELTA)
    return Claimed(budget.epsilon, DELTA)


def audited(actual: DPConfig, seed: int = 7) -> CanaryAudit:
    """Trains by ``actual`` and claims what CONFIG would spend."""
    module, x, y = problem()

    def train(network: nn.Module, inputs: PlantedInputs, labels: Tensor) -> tuple[nn.Module, Claimed]:
        return dp_fine_tune(network, inputs, labels, config=actual).module, claim(len(labels))

    return audit_in_one_run(train, module, x, y, classes=3, canaries=1200, seed=seed)


def test_a_correct_training_is_not_accused() -> None:
    for seed in (7, 8):
        found = audited(CONFIG, seed)
        assert found.epsilon < 3
        assert not found.broken
        assert found.bound.highest > 4  # and so many canaries could have accused it


def test_noise_switched_off_is_caught() -> None:
    found = audited(replace(CONFIG, noise_multiplier=0.0))
    assert found.broken
    assert found.bound.epsilon > 1.5 * found.epsilon


def test_clipping_skipped_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = clipping.Clipping.weights

    def unclipped(self: clipping.Clipping, squared_norms: Tensor) -> Any:
        given, rest = weights(self, squared_norms)
        return [torch.ones_like(weight) for weight in given], rest

    monkeypatch.setattr(clipping.Clipping, "weights", unclipped)
    assert audited(CONFIG).broken


def test_a_wrong_sampling_rate_is_caught() -> None:
    # Every record in every step, where the account says 60 of 800.
    wrong = replace(CONFIG, batch_size=700, epochs=100)
    assert audited(wrong).broken


def test_a_trainer_that_loses_the_probe_is_refused() -> None:
    module, x, y = problem()
    with pytest.raises(UnsupportedError, match="lost its probe"):
        audit_in_one_run(lambda m, i, t: (copy.deepcopy(module), Claimed(1.0, 0.0)), module, x, y, classes=3)


def test_the_loss_of_planted_records_scores_them() -> None:
    module, x, y = problem()
    expected = -nn.functional.cross_entropy(module(x), y, reduction="none")
    assert loss_scores(module, x, y, batch_size=64) == pytest.approx(expected.detach().numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_run_bound(np.zeros(1), np.ones(1, dtype=np.bool_), 0.0), "at least 2"),
        (lambda: one_run_bound(np.array([np.nan, 0]), np.ones(2, dtype=np.bool_), 0.0), "NaN"),
        (lambda: one_run_bound(np.zeros(4), np.ones(4, dtype=np.bool_), 1.5), "between 0 and 1"),
        (lambda: many_run_bound(np.zeros(3), np.zeros(9), 0.0), "at least 4"),
        (lambda: many_run_bound(np.zeros(9), np.zeros(9), 0.0, tuned_on=9), "some runs must be left"),
        (lambda: plant(*problem(), classes=3, canaries=1, seed=0), "at least 2 of each"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        call()
