"""LiRA and RMIA against tests that are optimal by hand."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.statistics import auc, auc_interval
from auditorch.privacy.membership.lira import LiRA
from auditorch.privacy.membership.rmia import RMIA
from auditorch.privacy.membership.roc import tpr_at_fpr
from auditorch.privacy.membership.statistics import References, label_log_probability, scaled_confidence
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import norm


@dataclass(frozen=True)
class World:
    """Models that are means of their training records: log-densities of ``n`` records under target and references.

    ``best`` is the log likelihood ratio of the trained mean, by hand, to whoever knows the n records as the references
    do: it is the mean of x and m - 1 of the n - 1 others, or of m of the others, drawn without replacement; each is
    nearly normal with the variance of a sample from a finite population.
    """

    target: NDArray[np.float64]
    references: References
    member: NDArray[np.bool_]
    best: NDArray[np.float64]

    def area(self, scores: NDArray[np.float64]) -> float:
        return auc(scores[self.member], scores[~self.member])


def means_of_records(n: int = 2400, d: int = 1200, models: int = 32, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    m = n // 2

    def trained(member: NDArray[np.bool_]) -> NDArray[np.float64]:
        return x[member].mean(0)

    def log_density(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        return -((x - theta) ** 2).sum(1) / 2

    masks = np.zeros((models + 1, n), dtype=np.bool_)
    for k in range(models + 1):
        masks[k, rng.permutation(n)[:m]] = True
        if k % 2:
            masks[k] = ~masks[k - 1]
    scores = np.stack([log_density(trained(mask)) for mask in masks])
    theta = trained(masks[-1])
    others = (x.sum(0) - x) / (n - 1)
    left = 1 - m / (n - 1)
    inside = norm.logpdf(theta, x / m + others * (m - 1) / m, math.sqrt((m - 1) * left) / m).sum(1)
    outside = norm.logpdf(theta, others, math.sqrt(left / m)).sum(1)
    return World(scores[-1][:, None], References(scores[:-1, :, None], masks[:-1]), masks[-1], inside - outside)


WORLD = means_of_records()


def test_the_optimal_test_by_hand_has_the_area_that_theory_gives() -> None:
    # x . theta is |x|^2 / m apart with deviation |x| / sqrt(2 m), half the records being drawn: d' = sqrt(2 d / m).
    assert WORLD.area(WORLD.best) == pytest.approx(norm.cdf(math.sqrt(2) / math.sqrt(2)), abs=0.015)


@pytest.mark.parametrize("attack", [LiRA(), LiRA(variance="fixed"), LiRA(online=False)])
def test_lira_reaches_the_area_of_the_optimal_test(attack: LiRA) -> None:
    optimum = WORLD.area(WORLD.best)
    assert WORLD.area(attack(WORLD.target, WORLD.references)) == pytest.approx(optimum, abs=0.02)


@pytest.mark.parametrize("online", [True, False])
def test_rmia_reaches_the_area_of_the_optimal_test(online: bool) -> None:
    attack = RMIA(online=online, offline_a=1.0)
    scores = attack(WORLD.target, WORLD.references, ~WORLD.member)
    assert WORLD.area(scores) == pytest.approx(WORLD.area(WORLD.best), abs=0.02)


def test_the_loss_alone_stays_far_below_them() -> None:
    # A record's density varies with its own length much more than with membership.
    assert WORLD.area(WORLD.target[:, 0]) < 0.55


def gaussian_scores(
    spread: float, models: int, n: int = 6000, shift: float = 2.0, seed: int = 1
) -> tuple[NDArray[np.float64], References, NDArray[np.bool_]]:
    """Scores N(mu + shift if trained on it, 1) with a mu for each record, far apart for a large ``spread``."""
    rng = np.random.default_rng(seed)
    mu = spread * rng.standard_normal(n)
    member = np.stack([np.arange(n) % 2 == k % 2 for k in range(models)])
    own = rng.random(n) < 0.5
    target = mu + shift * own + rng.standard_normal(n)
    scores = mu + shift * member + rng.standard_normal((models, n))
    return target[:, None], References(scores[:, :, None], member), own


@pytest.mark.parametrize("online", [True, False])
def test_gaussian_scores_meet_area_and_tpr_in_closed_form(online: bool) -> None:
    target, references, member = gaussian_scores(spread=20.0, models=128)
    scores = LiRA(online=online)(target, references)
    assert auc(scores[member], scores[~member]) == pytest.approx(norm.cdf(2 / math.sqrt(2)), abs=0.015)
    found = tpr_at_fpr(scores[member], scores[~member], 0.01)
    assert found.value == pytest.approx(norm.sf(norm.isf(0.01) - 2), abs=0.08)
    plain = tpr_at_fpr(target[member, 0], target[~member, 0], 0.01)
    assert plain.value < 0.05


def test_one_variance_for_all_is_steadier_with_few_models() -> None:
    target, references, member = gaussian_scores(spread=5.0, models=8)

    def found(attack: LiRA) -> float:
        scores = attack(target, references)
        return tpr_at_fpr(scores[member], scores[~member], 0.01).value

    assert found(LiRA(variance="fixed")) > found(LiRA(variance="record")) + 0.05
    assert found(LiRA()) == found(LiRA(variance="fixed"))


def test_a_pooled_variance_is_that_of_deviations_not_of_records() -> None:
    _, references, _ = gaussian_scores(spread=50.0, models=16)
    assert references.moments(member=False).pooled == pytest.approx(1.0, abs=0.05)


def test_moments_equal_those_of_each_record_by_itself() -> None:
    rng = np.random.default_rng(0)
    references = References(rng.standard_normal((9, 5, 2)), rng.random((9, 5)) < 0.5)
    found = references.moments(member=True)
    for i in range(5):
        own = references.scores[references.member[:, i], i]
        assert found.mean[i] == pytest.approx(own.mean(0))
        if len(own) > 1:
            assert found.variance[i] == pytest.approx(own.var(0, ddof=1))


def test_more_queries_of_a_record_add_up() -> None:
    rng = np.random.default_rng(2)
    n, models, q = 4000, 64, 4
    member = np.stack([np.arange(n) % 2 == k % 2 for k in range(models)])
    own = np.arange(n) % 4 < 2
    scores = rng.standard_normal((models, n, q)) + member[:, :, None]
    target = rng.standard_normal((n, q)) + own[:, None]
    references = References(scores, member)
    area = {k: _area(LiRA()(target[:, :k], References(scores[:, :, :k], member)), own) for k in (1, 4)}
    assert area[1] == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.02)
    assert area[4] == pytest.approx(norm.cdf(2 / math.sqrt(2)), abs=0.02)
    assert references.moments(member=True).mean.shape == (n, q)


def _area(scores: NDArray[np.float64], member: NDArray[np.bool_]) -> float:
    return auc(scores[member], scores[~member])


@pytest.mark.parametrize("seed", range(3))
def test_models_trained_on_other_records_give_chance(seed: int) -> None:
    target, references, _ = gaussian_scores(spread=3.0, models=16, n=1500, shift=0.0, seed=seed)
    labels = np.random.default_rng(seed).random(1500) < 0.5
    for scores in (
        LiRA()(target, references),
        LiRA(online=False)(target, references),
        RMIA()(target - 20, References(references.scores - 20, references.member), ~labels),
    ):
        low, high = auc_interval(scores[labels], scores[~labels], confidence=0.999)
        assert low <= 0.5 <= high


def rmia_by_hand(
    target: NDArray[np.float64], references: References, population: NDArray[np.bool_], gamma: float
) -> NDArray[np.float64]:
    """The definition, pair by pair (arXiv 2312.03262, eq. 2 and 10)."""
    p, q = np.exp(target[:, 0]), np.exp(references.scores[:, :, 0])
    shares = []
    for i in range(len(p)):
        ratios = []
        for j in np.flatnonzero(population):
            if j == i:
                continue
            prior = [(q[references.member[:, a], a].mean() + q[~references.member[:, a], a].mean()) / 2 for a in (i, j)]
            ratios.append((p[i] / prior[0]) / (p[j] / prior[1]) >= gamma)
        shares.append(np.mean(ratios))
    return np.array(shares)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_rmia_equals_its_definition(gamma: float) -> None:
    rng = np.random.default_rng(4)
    member = np.stack([np.arange(30) % 2 == k % 2 for k in range(6)])
    references = References(-rng.exponential(2, (6, 30, 1)), member)
    target = -rng.exponential(1, (30, 1))
    population = np.arange(30) >= 12
    scores = RMIA(gamma=gamma)(target, references, population)
    count = population.sum() - population
    shares = np.floor(scores * (count + 1)) / count
    assert shares == pytest.approx(rmia_by_hand(target, references, population, gamma))


def test_offline_rmia_guesses_what_trained_models_would_say() -> None:
    member = np.array([[True, False], [False, True]])
    references = References(np.log([[[0.9], [0.2]], [[0.4], [0.8]]]), member)
    quotient = RMIA(online=False, offline_a=0.25).quotient(np.log([[0.5], [0.5]]), references)
    expected = [(0.4 + 0.25 * 0.4 + 0.75) / 2, (0.2 + 0.25 * 0.2 + 0.75) / 2]
    assert quotient == pytest.approx(np.log(0.5) - np.log(expected))


def test_scores_from_logits_equal_their_formulas_and_stay_apart_near_certainty() -> None:
    rng = np.random.default_rng(0)
    logits, y = rng.standard_normal((3, 7, 4)) * 3, rng.integers(0, 4, 7)
    log_p = np.take_along_axis(log_softmax(logits, -1), np.broadcast_to(y[:, None], (3, 7, 1)), -1)[..., 0]
    assert label_log_probability(logits, y) == pytest.approx(log_p)
    assert scaled_confidence(logits, y) == pytest.approx(log_p - np.log1p(-np.exp(log_p)))
    sure = np.array([[60.0, 0.0, 0.0], [61.0, 0.0, 0.0]], dtype=np.float32)
    assert np.diff(scaled_confidence(sure, np.zeros(2, dtype=np.int64))) == pytest.approx(1)


def test_what_cannot_be_scored_is_refused() -> None:
    member = np.array([[True, False], [True, True]])
    references = References(np.zeros((2, 2, 1)), member)
    with pytest.raises(UnsupportedError, match="1 records have fewer than 1 reference models that were not trained"):
        LiRA()(np.zeros((2, 1)), references)
    with pytest.raises(UnsupportedError, match="1 records lack reference models"):
        RMIA()(np.zeros((2, 1)), references, np.ones(2, dtype=np.bool_))
    with pytest.raises(UnsupportedError, match="expected"):
        References(np.zeros((2, 2)), member)
    with pytest.raises(UnsupportedError, match="gamma"):
        RMIA(gamma=0.5)
    with pytest.raises(UnsupportedError, match="NaN"):
        References(np.full((2, 2, 1), np.nan), member)
