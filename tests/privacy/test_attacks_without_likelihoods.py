"""Quantile regression, the Shokri attack and the label-only attack on leaks that are planted, and on none."""

import math

import numpy as np
import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.statistics import auc, auc_interval
from auditorch.privacy.membership.augment import Augmentations
from auditorch.privacy.membership.label_only import LabelOnly, crossing
from auditorch.privacy.membership.quantile import QuantileRegression
from auditorch.privacy.membership.shokri import ShokriAttack
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor


def varied_scores(shift: float, n: int = 3000, seed: int = 0) -> tuple[NDArray[np.float64], Tensor, NDArray[np.bool_]]:
    """Scores whose mean and deviation depend on the record, raised by ``shift`` deviations for members."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)).astype(np.float32)
    member = rng.random(n) < 0.5
    deviation = np.exp(0.8 * x[:, 1])
    scores = 4 * x[:, 0] + deviation * (shift * member + rng.standard_normal(n))
    return scores, torch.from_numpy(x), member


def test_quantile_regression_finds_what_a_threshold_cannot() -> None:
    scores, x, member = varied_scores(1.5)
    y = np.zeros(len(scores), dtype=np.int64)
    judged = QuantileRegression()(scores, x, y, ~member)
    optimum = norm.cdf(1.5 / math.sqrt(2))
    assert auc(scores[member], scores[~member]) < 0.65
    assert auc(judged[member], judged[~member]) == pytest.approx(optimum, abs=0.04)
    # One threshold is the same quantile whatever the record: the scores of non-members are standard normal.
    assert judged[~member].mean() == pytest.approx(0, abs=0.1)
    assert judged[~member].std() == pytest.approx(1, abs=0.15)


def test_the_label_tells_the_regressor_too() -> None:
    rng = np.random.default_rng(1)
    y, member = rng.integers(0, 3, 2000), rng.random(2000) < 0.5
    scores = 10.0 * y + member + rng.standard_normal(2000)
    judged = QuantileRegression()(scores, torch.zeros(2000, 4), y, ~member)
    assert auc(judged[member], judged[~member]) == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.03)


def test_quantile_regression_does_not_favour_the_records_that_it_was_not_fitted_on() -> None:
    scores, x, member = varied_scores(0.0, n=800)
    judged = QuantileRegression()(scores, x, np.zeros(800, dtype=np.int64), ~member)
    low, high = auc_interval(judged[member], judged[~member], confidence=0.999)
    assert low <= 0.5 <= high
    with pytest.raises(UnsupportedError, match="at least 20 non-members"):
        QuantileRegression()(scores, x, np.zeros(800, dtype=np.int64), np.arange(800) < 5)


def shadow_logits(
    shift: float, n: int = 1200, models: int = 6, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """Members are surer, in class 0 of the label and in class 1 of everything: the classes must be told apart."""
    rng = np.random.default_rng(seed)
    y, member = rng.integers(0, 2, n), rng.random((models + 1, n)) < 0.5
    logits = rng.standard_normal((models + 1, n, 4))
    sign = np.where(y == 0, shift, -shift)
    for k in range(models + 1):
        logits[k, np.arange(n), y] += 1 + sign * member[k]
    return logits[0], logits[1:], member[1:], y, member[0]


def test_the_shadow_attack_learns_what_members_of_each_class_look_like() -> None:
    target, shadows, member, y, own = shadow_logits(3.0)
    scores = ShokriAttack()(target, shadows, member, y)
    assert auc(scores[own], scores[~own]) > 0.9
    plain = target[np.arange(len(y)), y]
    assert 0.35 < auc(plain[own], plain[~own]) < 0.65


def test_the_shadow_attack_gives_chance_where_members_look_like_others() -> None:
    target, shadows, member, y, own = shadow_logits(0.0, n=600)
    scores = ShokriAttack(epochs=3)(target, shadows, member, y)
    low, high = auc_interval(scores[own], scores[~own], confidence=0.999)
    assert low <= 0.5 <= high


def test_a_class_with_few_records_shares_a_network() -> None:
    target, shadows, member, y, own = shadow_logits(3.0, n=600)
    y = y.copy()
    y[:3] = 2
    scores = ShokriAttack(epochs=3)(target, shadows, member, y)
    assert np.isfinite(scores).all()
    assert auc(scores[own], scores[~own]) > 0.8
    with pytest.raises(UnsupportedError, match="shape"):
        ShokriAttack()(target[:5], shadows, member, y)


def ball(x: Tensor) -> Tensor:
    """Class 1 inside a ball of root mean square 0.2 around 0.5, class 0 outside."""
    return ((x - 0.5).flatten(1).square().mean(1).sqrt() < 0.2).long()


def on_rays() -> tuple[Tensor, Tensor]:
    """Records of class 1 and how far (root mean square) each is from the middle of the ball."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(200, 1, 6, 6, generator=generator)
    direction /= direction.flatten(1).square().mean(1).sqrt().view(-1, 1, 1, 1)
    radius = torch.linspace(0.01, 0.19, 200)
    x = 0.5 + direction * radius.view(-1, 1, 1, 1)
    assert bool((ball(x) == 1).all())
    return x, radius


@pytest.mark.parametrize(("bounds", "unit"), [((0.0, 1.0), 1.0), ((-math.inf, math.inf), 5.0)])
def test_scores_follow_the_distance_to_the_boundary(bounds: tuple[float, float], unit: float) -> None:
    x, radius = on_rays()
    scores = LabelOnly(queries=300)(ball, x, torch.ones(200, dtype=torch.int64), bounds=bounds, seed=1)
    order = np.corrcoef(np.argsort(np.argsort(-scores)), np.arange(200))[0, 1]
    assert order > (0.95 if unit == 1 else 0.8)
    # No change is shorter than the way to the boundary.
    assert (scores * unit > 0.2 - radius.numpy() - 1e-4).all()
    assert np.median(scores * unit - (0.2 - radius.numpy())) < (0.03 if unit == 1 else 0.2)


def test_a_record_whose_label_never_changes_is_the_farthest_and_classes_are_told_apart_by_label_only() -> None:
    x, y = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([7, 7, 7, 2, 2, 2])
    scores = LabelOnly()(lambda points: torch.full((len(points),), 7), x, y)
    assert scores.tolist() == [1, 1, 1, -3, -3, -3]


def test_versions_that_keep_their_label_decide_before_the_distance() -> None:
    x, _ = on_rays()
    y = torch.ones(200, dtype=torch.int64)

    def sided(points: Tensor) -> Tensor:
        """A picture that is brighter on the right is another class."""
        return ball(points) * (points[..., :3].mean((1, 2, 3)) >= points[..., 3:].mean((1, 2, 3)) - 0.01)

    right = (sided(x) == 1).numpy()
    scores = LabelOnly(augmentations=Augmentations(flip=True))(sided, x, y)
    mirrored = (sided(x.flip(-1)) == 1).numpy()
    assert right.sum() > 50
    assert scores[right & mirrored].min() > 1 > scores[right & ~mirrored].max() > 0


def test_the_crossing_is_found_to_the_precision_that_was_asked() -> None:
    x = torch.full((3, 1, 4, 4), 0.5)
    direction = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = crossing(ball, x, torch.ones(3, dtype=torch.int64), direction, 0.41, 10)
    assert found.tolist() == pytest.approx([0.2] * 3, abs=0.41 / 2**10)


def test_misclassified_records_score_below_all_others_and_draws_belong_to_the_record() -> None:
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = torch.arange(20) % 2
    scores = LabelOnly()(ball, x, y, seed=2)
    right = (ball(x) == y).numpy()
    assert scores[~right].max() < scores[right].min()
    part = LabelOnly()(ball, x[5:9], y[5:9], seed=2, ids=torch.arange(5, 9))
    assert part == pytest.approx(scores[5:9])


def test_augmentations_are_flips_and_shifts_of_pictures_only() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    views = Augmentations(shifts=1)(x)
    assert len(views) == 10
    assert torch.equal(views[0], x)
    assert torch.equal(views[5], x.flip(-1))
    down = views[1]
    assert torch.equal(down[:, :, 1:], x[:, :, :-1])
    assert torch.equal(down[:, :, 0], x[:, :, 0])
    assert len({view.numpy().tobytes() for view in views}) == 10
    rows = torch.rand(3, 5)
    assert Augmentations(shifts=2)(rows) == [rows]
    with pytest.raises(UnsupportedError, match="shifts"):
        Augmentations(shifts=-1)
    with pytest.raises(UnsupportedError, match="at least 100"):
        LabelOnly(queries=99)
