import math
from itertools import product

import pytest
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy import accounting
from auditorch.privacy.accounting import default_delta, epsilon, noise_for, pld_epsilon, prv_epsilon, rdp_epsilon
from auditorch.privacy.tuning import tuning_cost
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.prv import Domain
from scipy.fft import next_fast_len
from scipy.optimize import brentq
from scipy.stats import norm

GDP = {(1.1, 256 / 60000, 14040): 2.32, (0.8, 0.01, 2000): 3.72, (0.5, 0.001, 10000): 3.06}
"""What the central-limit account claims: too little."""


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Exact epsilon of one Gaussian mechanism of sensitivity 1 (Balle & Wang, arXiv 1805.06530)."""

    def excess(eps: float) -> float:
        return float(norm.cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * norm.cdf(-0.5 / sigma - eps * sigma)) - delta

    return float(brentq(excess, 0, 100))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("mechanism", "prv", "pld", "rdp"),
    [
        ((1.1, 256 / 60000, 14040), 2.39, 2.38, 2.59),
        ((0.8, 0.01, 2000), 4.30, 4.29, 4.86),
        ((0.5, 0.001, 10000), 5.24, 5.23, 6.42),
    ],
)
def test_known_budgets(mechanism: tuple[float, float, int], prv: float, pld: float, rdp: float) -> None:
    budget = epsilon(*mechanism, delta=1e-5)
    assert budget.accountant == "prv"
    assert budget.epsilon == budget.prv == pytest.approx(prv, rel=0.005)
    assert budget.pld == pytest.approx(pld, rel=0.005)
    assert budget.rdp == pytest.approx(rdp, rel=0.005)
    assert budget.rdp > max(budget.epsilon, budget.pld or math.inf)
    assert budget.epsilon > GDP[mechanism] * 1.02
    assert budget.warnings == ()


@pytest.mark.parametrize(("sigma", "steps"), [(4.0, 1), (1.5, 4), (10.0, 3)])
def test_full_batches_are_one_gaussian_mechanism(sigma: float, steps: int) -> None:
    exact = gaussian_epsilon(sigma / math.sqrt(steps), 1e-5)
    budget = epsilon(sigma, 1.0, steps, 1e-5)
    for value in (budget.prv, budget.pld):
        assert value is not None
        assert exact * 0.9999 <= value <= exact * 1.006
    assert budget.rdp >= exact


MECHANISMS = {
    "noise": st.floats(0.6, 8.0),
    "rate": st.floats(1e-3, 0.5),
    "steps": st.integers(1, 2000),
    "delta": st.floats(-7, -4).map(lambda power: 10**power),
}


def accountants_agree(noise: float, rate: float, steps: int, delta: float) -> None:
    """PRV and PLD within 1 %, or within their own resolution where there is next to nothing to account for."""
    prv, pld = prv_epsilon(noise, rate, steps, delta), pld_epsilon(noise, rate, steps, delta)
    assert prv == pytest.approx(pld, rel=0.01, abs=1e-4)
    rdp = rdp_epsilon(noise, rate, steps, delta)
    assert rdp >= max(prv, pld) - 1e-4


LARGEST = 15.0
"""Beyond that epsilon nobody claims privacy."""

ENDS = [*product((0.6, 8.0), (1e-3,), (1, 2000), (1e-7, 1e-4)), *product((0.6, 8.0), (0.5,), (1,), (1e-7, 1e-4))]
MOST = [(0.6, 0.5, 2, 1e-7), (0.6, 0.5, 4, 1e-4), (8.0, 0.5, 1300, 1e-7), (8.0, 0.5, 1800, 1e-4)]
"""At the other end of rate and steps epsilon is in the thousands: these come close to the largest that is looked at."""


@pytest.mark.parametrize("mechanism", [*ENDS, *MOST])
def test_accountants_agree_at_the_ends(mechanism: tuple[float, float, int, float]) -> None:
    accountants_agree(*mechanism)


def test_at_the_ends_there_is_next_to_nothing_or_nearly_the_most_to_account_for() -> None:
    assert min(rdp_epsilon(*mechanism) for mechanism in ENDS) < 0.002
    assert all(12 < rdp_epsilon(*mechanism, rough=True) < LARGEST for mechanism in MOST)
    assert prv_epsilon(8.0, 1e-3, 1, 1e-4) == pld_epsilon(8.0, 1e-3, 1, 1e-4) == 0, "delta alone pays for it"


@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(**MECHANISMS)
def test_accountants_agree(noise: float, rate: float, steps: int, delta: float) -> None:
    assume(rdp_epsilon(noise, rate, steps, delta, rough=True) < LARGEST)
    accountants_agree(noise, rate, steps, delta)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(**MECHANISMS)
def test_accountants_agree_on_a_fine_grid(noise: float, rate: float, steps: int, delta: float) -> None:
    assume(rdp_epsilon(noise, rate, steps, delta, rough=True) < LARGEST)
    accountants_agree(noise, rate, steps, delta)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.floats(0.7, 20.0), st.integers(1, 30), st.floats(-8, -3).map(lambda power: 10**power))
def test_full_batches_are_the_analytic_gaussian(noise: float, steps: int, delta: float) -> None:
    """At rate 1 all steps are one Gaussian mechanism with a closed form."""
    exact = gaussian_epsilon(noise / math.sqrt(steps), delta)
    for value in (prv_epsilon(noise, 1.0, steps, delta), pld_epsilon(noise, 1.0, steps, delta)):
        assert exact * 0.9999 - 1e-6 <= value <= exact * 1.006 + 1e-3
    assert rdp_epsilon(noise, 1.0, steps, delta) >= exact


def test_rough_rdp_is_an_upper_bound_too() -> None:
    for mechanism in ((1.0, 0.05, 80), (0.6, 0.3, 20), (4.0, 0.01, 2000)):
        fine = rdp_epsilon(*mechanism, 1e-5)
        assert fine <= rdp_epsilon(*mechanism, 1e-5, rough=True) <= 1.06 * fine


def test_tuning_costs_what_all_trials_cost() -> None:
    """Three full-batch trainings are one Gaussian mechanism with a third of the variance."""
    budget = epsilon(6.0, 1.0, 4, 1e-5)
    cost = tuning_cost(budget, 3)
    assert cost.epsilon == pytest.approx(gaussian_epsilon(6.0 / math.sqrt(12), 1e-5), rel=0.006)
    assert cost.random_trials is not None
    assert budget.epsilon < cost.random_trials
    assert tuning_cost(budget, 1).epsilon == budget.epsilon
    many = tuning_cost(budget, 200)
    assert many.random_trials is not None
    assert many.random_trials < many.epsilon, "many trials: publish the best only"
    with pytest.raises(UnsupportedError, match="trials is 0"):
        tuning_cost(budget, 0)


def test_more_noise_fewer_steps_smaller_batches_cost_less() -> None:
    base = prv_epsilon(1.0, 0.05, 80, 1e-5)
    assert prv_epsilon(1.2, 0.05, 80, 1e-5) < base
    assert prv_epsilon(1.0, 0.04, 80, 1e-5) < base
    assert prv_epsilon(1.0, 0.05, 60, 1e-5) < base
    assert prv_epsilon(1.0, 0.05, 80, 1e-6) > base


def test_rdp_stands_in_when_prv_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: float) -> float:
        raise MemoryError

    monkeypatch.setattr(accounting, "prv_epsilon", exhausted)
    budget = epsilon(1.0, 0.05, 100, 1e-5)
    assert (budget.accountant, budget.prv) == ("rdp", None)
    assert budget.epsilon == budget.rdp == rdp_epsilon(1.0, 0.05, 100, 1e-5)
    assert "RDP's" in budget.warnings[0]
    noise = noise_for(3.0, 0.05, 100, 1e-5)
    assert 2.9 < rdp_epsilon(noise, 0.05, 100, 1e-5) <= 3.0


def test_the_grid_is_one_that_is_transformed_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size has small prime factors only, it is hardly finer than was asked for, and Opacus reaches as far."""
    sizes: list[tuple[int, float]] = []
    original = Domain.create_aligned.__func__  # pyright: ignore[reportFunctionMemberAccess]

    def noted(cls: type[Domain], low: float, high: float, step: float) -> Domain:
        made = original(cls, low, high, step)
        sizes.append((made.size, high))
        return made

    monkeypatch.setattr(Domain, "create_aligned", classmethod(noted))
    for mechanism in ((1.0, 0.05, 80, 1e-5), (3.3, 1e-3, 50, 1e-5), (0.7, 0.01, 1, 1e-6)):
        sizes.clear()
        prv_epsilon(*mechanism)
        grid = accounting._Grid.of(*mechanism)
        for size, reach in sizes:
            assert next_fast_len(size, real=True) == size
            assert reach == pytest.approx(grid.reach, rel=1e-6)
        wanted = grid.points(max(0.003 * prv_epsilon(*mechanism), 6e-5))
        assert 0.8 * wanted < sizes[-1][0] < 1.2 * wanted


def test_too_fine_a_grid_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(UnsupportedError, match="too fine"):
        prv_epsilon(0.02, 0.01, 10**6, 1e-5)


@pytest.mark.parametrize(("factor", "accountant"), [(1.03, "pld"), (0.97, "prv"), (1.005, "prv")])
def test_the_larger_is_reported_when_accountants_disagree(
    monkeypatch: pytest.MonkeyPatch, factor: float, accountant: str
) -> None:
    prv = prv_epsilon(1.0, 0.05, 50, 1e-5)
    monkeypatch.setattr(accounting, "pld_epsilon", lambda *_: prv * factor)
    budget = epsilon(1.0, 0.05, 50, 1e-5)
    assert budget.accountant == accountant
    assert budget.epsilon == pytest.approx(prv * (factor if accountant == "pld" else 1))
    assert ("differ by more than 1 %" in " ".join(budget.warnings)) == (abs(factor - 1) > 0.01)


@pytest.mark.parametrize(("target", "rate", "steps"), [(1.0, 0.05, 60), (0.3, 1.0, 5)])
def test_noise_for_spends_the_target_and_no_more(target: float, rate: float, steps: int) -> None:
    spent = prv_epsilon(noise_for(target, rate, steps, 1e-5), rate, steps, 1e-5)
    assert 0.99 * target < spent <= target


def test_no_steps_cost_nothing_and_no_noise_protects_nothing() -> None:
    assert epsilon(1.0, 0.1, 0, 1e-5).epsilon == 0
    assert epsilon(0.0, 0.1, 10, 1e-5).epsilon == math.inf


def test_default_delta_is_below_one_over_n() -> None:
    assert default_delta(6000) == pytest.approx(6000**-1.1)
    assert default_delta(6000) < 1 / 6000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.0, 1, 1e-5), "sample rate is 0"),
        ((1.0, 1.5, 1, 1e-5), "sample rate is 1.5"),
        ((1.0, 0.5, 1, 0.0), "delta is 0"),
        ((-1.0, 0.5, 1, 1e-5), "noise multiplier is -1"),
    ],
)
def test_bad_arguments(arguments: tuple[float, float, int, float], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        epsilon(*arguments)
    with pytest.raises(UnsupportedError, match="epsilon is 0"):
        noise_for(0.0, 0.5, 1, 1e-5)
