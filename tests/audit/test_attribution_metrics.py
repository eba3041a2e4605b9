"""Scores of attribution maps against known answers and second implementations."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import pytest
import torch
from auditorch.attacks.streams import Streams
from auditorch.audit.attribution.baselines import make_baseline
from auditorch.audit.attribution.curves import area_under, perturbation_curve, pixel_ranks
from auditorch.audit.attribution.faithfulness import infidelity, sensitivity_max
from auditorch.audit.attribution.methods import attribute, relevance
from auditorch.audit.attribution.metrics import (
    border_mask,
    border_share,
    completeness_gap,
    randomized,
    rank_correlation,
    sparseness,
    top_overlap,
)
from scipy.stats import spearmanr
from torch import Tensor, nn

from .fakes import small_cnn
from .test_attribution_methods import Planted, convolutional, images, linear


def ranks_of(pixels: Tensor) -> Tensor:
    return pixel_ranks(pixels, Streams.from_seed(0, torch.arange(len(pixels))))


def test_ranks_follow_relevance_and_ties_fall_at_random() -> None:
    pixels = torch.zeros(200, 3, 3)
    pixels[:, 1, 2], pixels[:, 0, 0] = 5, -1
    ranks = ranks_of(pixels)
    assert (ranks[:, 1, 2] == 0).all()
    assert (ranks[:, 0, 0] == 8).all()
    assert torch.equal(ranks.flatten(1).sort(1).values, torch.arange(9).expand(200, 9))
    assert abs(float(ranks[:, 2, 2].float().mean()) - 4) < 0.5  # the seven ties share places 1 to 7
    assert torch.equal(ranks_of(pixels[:7]), ranks[:7])


def test_curves_agree_with_a_loop_over_steps() -> None:
    model, x, targets = convolutional(), images(5), torch.arange(5) % 3
    nothing, ranks = make_baseline(x, "mean"), ranks_of(images(5, seed=2)[:, 0])
    modes: tuple[Literal["deletion", "insertion"], ...] = ("deletion", "insertion")
    for mode in modes:
        start, end = (x, nothing) if mode == "deletion" else (nothing, x)
        curve = perturbation_curve(model, x, targets, ranks, nothing, mode, steps=4, batch_size=7)
        for step in range(5):
            replaced = (ranks < step * 16)[:, None]
            expected = model(torch.where(replaced, end, start)).softmax(1)[torch.arange(5), targets]
            assert torch.allclose(curve[:, step], expected, atol=1e-6)


def test_area_under_is_the_mean_height() -> None:
    assert torch.allclose(area_under(torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0.5, 1]])), torch.tensor([1, 0.25, 0.5]))


def test_deleting_the_planted_patch_is_felt_at_once_and_random_order_is_slower() -> None:
    x, ones = 0.8 + 0.1 * images(20, c=1), torch.ones(20, dtype=torch.int64)
    maps = relevance(attribute("integrated_gradients", Planted(), x, ones))
    noise = relevance(attribute("random", Planted(), x, ones))
    curve = partial(perturbation_curve, Planted(), x, ones, baseline=torch.zeros_like(x), mode="deletion")
    own, control = curve(ranks=ranks_of(maps)), curve(ranks=ranks_of(noise))
    assert (own[:, 0] > 0.99).all()
    assert (own[:, 1] < 0.01).all()  # 4 of 64 pixels: exactly the patch
    assert area_under(own).max() < 0.04
    assert area_under(control).mean() > 5 * area_under(own).mean()


def test_sparseness() -> None:
    one = torch.zeros(8, 8)
    one[3, 3] = -2
    values = sparseness(torch.stack([torch.ones(8, 8), one, torch.zeros(8, 8), torch.arange(64.0).view(8, 8)]))
    # Gini of 0..63 is (d + 1) / (3 d).
    assert torch.allclose(values, torch.tensor([0, 1 - 1 / 64, 0, 65 / 192]), atol=1e-5)


def test_border_share() -> None:
    centre = torch.zeros(20, 20)
    centre[2:18, 2:18] = 1
    values = border_share(torch.stack([torch.ones(20, 20), centre, torch.zeros(20, 20)]))
    assert border_mask(torch.ones(1, 20, 20)).sum() == 400 - 256
    assert torch.allclose(values[:2], torch.tensor([0.36, 0.0]))
    assert values[2].isnan()


def test_top_overlap() -> None:
    ranks = torch.arange(100).view(1, 10, 10)
    assert top_overlap(ranks, ranks, 0.1).item() == 1
    assert top_overlap(ranks, 99 - ranks, 0.1).item() == 0
    assert math.isclose(top_overlap(ranks, (ranks + 5) % 100, 0.1).item(), 5 / 15, rel_tol=1e-6)


def test_rank_correlation_agrees_with_scipy() -> None:
    a = (images(6, seed=1)[:, 0] * 5).round()  # many ties
    b = images(6, seed=2)[:, 0] + a / 5
    expected = [spearmanr(u.flatten(), v.flatten())[0] for u, v in zip(a, b, strict=True)]
    assert torch.allclose(rank_correlation(a, b), torch.tensor(expected, dtype=torch.float32), atol=1e-6)
    assert rank_correlation(a, torch.zeros_like(a)).tolist() == [0.0] * 6


def test_completeness_gap() -> None:
    model, x, targets = linear(), images(), torch.arange(6) % 3
    nothing = make_baseline(x, "blur")
    maps = attribute("integrated_gradients", model, x, targets, baseline=nothing)
    assert completeness_gap(model, x, targets, nothing, maps, batch_size=4).max() < 1e-4
    assert torch.allclose(completeness_gap(model, x, targets, nothing, maps + 1), torch.full((6,), 128.0), atol=1e-3)


def test_more_steps_close_the_completeness_gap() -> None:
    model, x, targets = Curved(), images(4, c=1), torch.zeros(4, dtype=torch.int64)
    nothing = torch.zeros_like(x)
    gaps = [
        completeness_gap(
            model, x, targets, nothing, attribute("integrated_gradients", model, x, targets, steps=steps)
        ).max()
        for steps in (2, 16)
    ]
    assert gaps[0] > 1e-2
    assert gaps[1] < 1e-3


class Curved(nn.Module):
    """A smooth, strongly bent function of the mean pixel."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([10 * torch.sin(8 * mean), mean], 1)


def test_infidelity_is_zero_for_the_truth_and_one_for_nothing() -> None:
    model, x, targets = linear(), images(), torch.arange(6) % 3
    nothing = make_baseline(x, "mean")
    truth = attribute("integrated_gradients", model, x, targets, baseline=nothing)
    score = partial(infidelity, model, x, targets, baseline=nothing)
    assert score(attributions=truth).max() < 1e-5
    assert score(attributions=3 * truth).max() < 1e-5  # scale does not matter
    assert torch.allclose(score(attributions=torch.zeros_like(x)), torch.ones(6))
    assert score(attributions=attribute("random", model, x, targets)).mean() > 0.5


def test_infidelity_of_gradients_weighs_them_by_the_change() -> None:
    model, x, targets = linear(), images(), torch.arange(6) % 3
    gradient = attribute("integrated_gradients", model, torch.ones_like(x), targets)
    nothing = torch.zeros_like(x)
    assert infidelity(model, x, targets, gradient, nothing, local=True).max() < 1e-5
    assert infidelity(model, x, targets, gradient, nothing, local=False).min() > 1e-3


def test_infidelity_is_undefined_where_nothing_has_an_effect() -> None:
    x = torch.zeros(2, 1, 8, 8)
    assert infidelity(Planted(), x, torch.ones(2, dtype=torch.int64), x, torch.zeros_like(x)).isnan().all()


def test_captum_metrics_do_not_depend_on_batch_or_global_randomness() -> None:
    model, x, targets, ids = convolutional(), images(), torch.arange(6) % 3, torch.arange(20, 26)
    nothing, before = torch.zeros_like(x), torch.get_rng_state()
    maps = attribute("saliency", model, x, targets)

    def explain(inputs: Tensor, classes: Tensor, keys: Tensor) -> Tensor:
        return attribute("gradient_shap", model, inputs, classes, ids=keys, steps=4)

    whole = infidelity(model, x, targets, maps, nothing, seed=3, ids=ids)
    part = infidelity(model, x[3:4], targets[3:4], maps[3:4], nothing[3:4], seed=3, ids=ids[3:4], batch_size=1)
    assert torch.allclose(whole[3:4], part, atol=1e-5)
    stable = sensitivity_max(explain, x, targets, ids=ids, seed=3)
    alone = sensitivity_max(explain, x[3:4], targets[3:4], ids=ids[3:4], seed=3)
    assert torch.allclose(stable[3:4], alone, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("perturbations", [1, 4])
def test_sensitivity_of_a_constant_explanation_is_zero_and_of_noise_large(perturbations: int) -> None:
    model, x, targets = linear(), images(), torch.arange(6) % 3

    def saliency(inputs: Tensor, classes: Tensor, keys: Tensor) -> Tensor:
        return attribute("saliency", model, inputs, classes, ids=keys)

    def noise(inputs: Tensor, classes: Tensor, keys: Tensor) -> Tensor:
        return attribute("random", model, inputs, classes, ids=keys)

    assert sensitivity_max(saliency, x, targets, perturbations=perturbations).max() == 0
    assert sensitivity_max(noise, x, targets, perturbations=perturbations).min() > 1


def test_sensitivity_is_the_largest_relative_change_within_the_radius() -> None:
    x = torch.full((3, 1, 8, 8), 0.5)

    def identity(inputs: Tensor, _: Tensor, __: Tensor) -> Tensor:
        return inputs

    found = sensitivity_max(identity, x, torch.zeros(3, dtype=torch.int64), radius=0.1, perturbations=8)
    # Uniform noise of radius r on a map of 0.5: about r / sqrt(3) / 0.5, never more than r / 0.5.
    assert ((found > 0.1 / math.sqrt(3) / 0.5) & (found < 0.2)).all()


def test_randomized_keeps_statistics_and_forgets_what_was_learned() -> None:
    model = small_cnn().train()
    before, rng = [p.clone() for p in model.parameters()], torch.get_rng_state()
    twin = randomized(model, seed=1)
    for parameter, other, kept in zip(model.parameters(), twin.parameters(), before, strict=True):
        own, other = parameter.detach(), other.detach()
        assert torch.equal(own, kept)
        assert not torch.equal(own, other)
        if own.numel() > 60:
            assert abs(float(own.std() / other.std()) - 1) < 0.3
            assert abs(float(torch.corrcoef(torch.stack([own.flatten(), other.flatten()]))[0, 1])) < 0.3
    assert model.training
    assert not twin.training
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(next(randomized(model, seed=1).parameters()), next(twin.parameters()))
