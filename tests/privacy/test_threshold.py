"""The threshold attack against closed forms, scikit-learn and planted leaks."""

import math

import numpy as np
import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy.membership.roc import advantage, balanced_accuracy, roc, tpr_at_fpr
from auditorch.privacy.membership.threshold import ScoreKind, membership_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, norm
from sklearn.metrics import roc_auc_score, roc_curve

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=40).map(np.array)


def gaussians(shift: float, n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, n), rng.normal(0, 1, n)


def test_gaussian_scores_meet_their_closed_forms() -> None:
    members, nonmembers = gaussians(1.0, 40_000)
    assert roc(members, nonmembers).auc == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.005)
    for fpr in (0.1, 0.01, 0.001):
        found = tpr_at_fpr(members, nonmembers, fpr)
        truth = norm.sf(norm.isf(fpr) - 1)
        assert found.value == pytest.approx(truth, rel=0.15)
        assert found.fpr_achieved == pytest.approx(fpr, rel=1e-6)
    assert advantage(members, nonmembers, resamples=100).value == pytest.approx(2 * norm.cdf(0.5) - 1, abs=0.01)
    assert balanced_accuracy(members, nonmembers).value == pytest.approx(norm.cdf(0.5), abs=0.01)


@settings(derandomize=True, deadline=None)
@given(SCORES, SCORES)
def test_roc_equals_scikit_learn_with_ties(members: NDArray[np.float64], nonmembers: NDArray[np.float64]) -> None:
    truth = np.r_[np.ones(len(members)), np.zeros(len(nonmembers))]
    scores = np.r_[members, nonmembers]
    fpr, tpr, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    ours = roc(members, nonmembers)
    assert ours.fpr == pytest.approx(fpr)
    assert ours.tpr == pytest.approx(tpr)
    assert np.array_equal(ours.thresholds, thresholds)
    assert ours.auc == pytest.approx(roc_auc_score(truth, scores))
    best = advantage(members, nonmembers, resamples=100)
    assert best.value == pytest.approx((tpr - fpr).max())
    assert best.low <= best.value <= best.high


@settings(derandomize=True, deadline=None)
@given(SCORES, SCORES, st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 1.0]))
def test_threshold_never_exceeds_the_target_and_is_the_best_that_does_not(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64], fpr: float
) -> None:
    found = tpr_at_fpr(members, nonmembers, fpr)
    assert found.fpr_achieved <= fpr + 1e-9
    assert found.fpr_achieved == pytest.approx((nonmembers >= found.threshold).mean())
    assert found.value == pytest.approx((members >= found.threshold).mean())
    curve = roc(members, nonmembers)
    assert found.value == pytest.approx(curve.tpr[curve.fpr <= fpr + 1e-9].max())


def test_ties_at_the_limit_stay_out() -> None:
    nonmembers = np.array([5.0, 5.0, 1.0, 0.0])
    found = tpr_at_fpr(np.array([6.0, 5.0, 2.0]), nonmembers, 0.25)
    assert (found.value, found.threshold, found.fpr_achieved) == (pytest.approx(1 / 3), 6.0, 0.0)


def test_tpr_interval_is_clopper_pearson() -> None:
    members, nonmembers = gaussians(2.0, 500)
    found = tpr_at_fpr(members, nonmembers, 0.01)
    hits = round(found.value * 500)
    assert found.low == pytest.approx(beta.ppf(0.025, hits, 501 - hits))
    assert found.high == pytest.approx(beta.ppf(0.975, hits + 1, 500 - hits))


def test_where_nothing_leaks_the_optimism_of_the_advantage_is_in_its_interval() -> None:
    touched, accuracies = 0, []
    for seed in range(40):
        members, nonmembers = gaussians(0.0, 300, seed)
        found = advantage(members, nonmembers, resamples=200)
        assert found.value > 0
        touched += found.low <= 0.02
        accuracies.append(balanced_accuracy(members, nonmembers).value)
    assert touched >= 37
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.01)


def test_scores_are_their_definitions() -> None:
    logits, y = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).double(), torch.arange(50) % 5
    p = logits.softmax(1)
    expected = {
        "loss": -torch.nn.functional.cross_entropy(logits, y, reduction="none"),
        "confidence": p.amax(1).log(),
        "entropy": -torch.distributions.Categorical(probs=p).entropy(),
        "margin": torch.stack(
            [row[c] - torch.cat([row[:c], row[c + 1 :]]).max() for row, c in zip(logits, y, strict=True)]
        ),
    }
    kinds: tuple[ScoreKind, ...] = ("loss", "confidence", "entropy", "margin")
    for kind in kinds:
        assert membership_scores(logits.numpy(), y.numpy(), kind) == pytest.approx(expected[kind].numpy()), kind


def test_confident_members_stay_apart_where_float32_rounds() -> None:
    logits = np.array([[40.0, 0.0], [60.0, 0.0]], dtype=np.float32)
    low, high = membership_scores(logits, np.zeros(2, dtype=np.int64), "loss")
    assert low < high < 0


@pytest.mark.parametrize("broken", [np.array([]), np.array([0.0, np.nan])])
def test_no_scores_and_nan_are_refused(broken: NDArray[np.float64]) -> None:
    with pytest.raises(UnsupportedError, match="non-members"):
        roc(np.ones(3), broken)
    with pytest.raises(UnsupportedError, match="shape"):
        membership_scores(np.zeros((3, 2)), np.zeros(4, dtype=np.int64))
