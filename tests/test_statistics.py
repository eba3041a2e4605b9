"""Intervals against scipy and scikit-learn, and against how often they hold the truth."""

import math

import numpy as np
import pytest
from auditorch.attacks import statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from(["wilson", "exact"]), st.sampled_from([0.9, 0.95, 0.99]))
def test_rate_interval_equals_scipy(n: int, share: float, method: statistics.Method, confidence: float) -> None:
    s = round(share * n)
    expected = binomtest(s, n).proportion_ci(confidence, method)
    low, high = statistics.rate_interval(s, n, confidence, method)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)


def test_rate_intervals_broadcast_and_hold_their_ends() -> None:
    low, high = statistics.rate_intervals(np.array([0, 5, 10]), 10)
    assert low[0] == 0
    assert high[2] == 1
    assert (low[1], high[1]) == pytest.approx(statistics.rate_interval(5, 10))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_rate_interval_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="n > 0"):
        statistics.rate_interval(successes, n)


def test_sum_interval_of_one_rate_is_its_own_and_weights_turn_it_round() -> None:
    assert statistics.sum_interval([1.0], [0.3], [(0.2, 0.5)]) == pytest.approx((0.2, 0.5))
    assert statistics.sum_interval([-1.0], [0.3], [(0.2, 0.5)]) == pytest.approx((-0.5, -0.2))
    low, high = statistics.sum_interval([0.5, 0.5], [0.5, 0.5], [(0.4, 0.6), (0.4, 0.6)])
    assert (low, high) == pytest.approx((0.5 - 0.1 / math.sqrt(2), 0.5 + 0.1 / math.sqrt(2)))


def test_auc_equals_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    positive, negative = np.round(rng.normal(0.7, 1, 60), 1), np.round(rng.normal(0, 1, 90), 1)
    truth = np.r_[np.ones(60), np.zeros(90)]
    assert statistics.auc(positive, negative) == pytest.approx(roc_auc_score(truth, np.r_[positive, negative]))


def test_auc_interval_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(1, 1, 200), rng.normal(0, 1, 300)
    low, high = statistics.auc_interval(positive, negative)

    draw = np.random.default_rng(2)
    values = [statistics.auc(draw.choice(positive, 200), draw.choice(negative, 300)) for _ in range(1000)]
    assert low == pytest.approx(np.quantile(values, 0.025), abs=0.01)
    assert high == pytest.approx(np.quantile(values, 0.975), abs=0.01)


def test_auc_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    truth = norm.cdf(1 / math.sqrt(2))
    held = 0
    for _ in range(400):
        low, high = statistics.auc_interval(rng.normal(1, 1, 50), rng.normal(0, 1, 50))
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98


def test_perfect_separation_does_not_claim_certainty() -> None:
    low, high = statistics.auc_interval(np.arange(10.0, 30), np.arange(10.0))
    assert (low, high) == (pytest.approx(statistics.rate_interval(10, 10)[0]), 1.0)
    assert math.isnan(statistics.auc_interval(np.ones(1), np.zeros(9))[0])


def test_bootstrap_sums_agree_with_resampling_by_hand() -> None:
    rng = np.random.default_rng(4)
    values = rng.exponential(1, (500, 2))
    sums = statistics.bootstrap_sums(values, seed=1)
    assert sums.shape == (1000, 2)
    assert sums.mean(0) == pytest.approx(values.sum(0), rel=0.01)
    assert sums.std(0) == pytest.approx(values.std(0) * math.sqrt(500), rel=0.1)


def test_bootstrap_weights_do_not_lose_samples_over_blocks() -> None:
    blocks = list(statistics.bootstrap_weights(10, 25, seed=0, cells=70))
    assert [len(block) for block in blocks] == [7, 7, 7, 4]
    assert all((block.sum(1) == 10).all() for block in blocks)
    assert len(np.unique(np.concatenate(blocks), axis=0)) > 20


def test_bootstrap_counts_are_those_of_resampled_samples() -> None:
    counts = np.array([[30, 5], [10, 55]])
    tables = statistics.bootstrap_counts(counts, resamples=4000)
    assert (tables.sum((1, 2)) == 100).all()
    assert tables.mean(0) == pytest.approx(counts, rel=0.05)
    assert tables[:, 0, 0].std() == pytest.approx(math.sqrt(100 * 0.3 * 0.7), rel=0.05)


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(5).normal(2, 1, 400)
    low, high = statistics.bootstrap_interval(lambda i: float(values[i].mean()), len(values))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_undefined_resamples_are_left_out_until_they_are_the_majority() -> None:
    values = np.r_[np.full(40, np.nan), np.linspace(0, 1, 60)]
    assert statistics.percentile_interval(values) == pytest.approx((0.025, 0.975))
    assert math.isnan(statistics.percentile_interval(np.r_[values, np.full(30, np.nan)])[0])


def test_basic_interval_reflects_stays_in_bounds_and_holds_the_estimate() -> None:
    values = np.linspace(0.1, 0.3, 1001)  # pushed up from an estimate of 0.1
    low, high = statistics.basic_interval(values, 0.1, (0, 1))
    assert (low, high) == (0, 0.1)
    assert statistics.basic_interval(values, 0.2, (0, 1)) == pytest.approx((0.105, 0.295))


def test_quantile_interval_holds_the_truth_at_least_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(500):
        low, high = statistics.quantile_interval(rng.exponential(1, 60), 0.5)
        held += low <= math.log(2) <= high
    assert 0.94 <= held / 500 <= 0.99
    assert math.isnan(statistics.quantile_interval(np.arange(5.0), 0.9)[1])
