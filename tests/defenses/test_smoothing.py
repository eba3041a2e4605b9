"""Smoothing against what is known: a linear model's smoothed classifier is the model itself, its radius the distance
to the nearest border, and the binomial bound has a second definition."""

import math

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.search import input_gradient
from auditorch.attacks.streams import Streams
from auditorch.attacks.threat import Threat
from auditorch.defenses.objectives import CrossEntropy, Moment
from auditorch.defenses.smoothing import (
    ABSTAIN,
    GaussianNoise,
    Smoothed,
    certificates,
    certified_radius,
    certify,
    decided,
    lower_bound,
    smooth_predict,
    vote_counts,
)
from scipy.optimize import bisect
from scipy.special import ndtri
from scipy.stats import binom, norm
from torch import Tensor, nn

D = 12
WIDE = Threat("l2", 1.0, bounds=(-50, 50))


def two_classes(scale: float = 3.0) -> nn.Linear:
    """Class 1 where ``w x + b > 0``."""
    layer = nn.Linear(D, 2)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        layer.weight[0] = 0
        layer.weight[1] = scale * torch.randn(D, generator=generator)
        layer.bias.copy_(torch.tensor([0.0, 0.7]))
    return layer.eval()


def distance(layer: nn.Linear, x: Tensor) -> Tensor:
    """l2 distance ``(n,)`` to the border, positive on the side of class 1."""
    with torch.no_grad():
        return (layer(x)[:, 1] - layer(x)[:, 0]) / (layer.weight[1] - layer.weight[0]).norm()


def points(n: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (60, 100), (99, 100), (100, 100), (99_900, 100_000)])
def test_the_binomial_bound_is_where_the_tail_is_alpha(successes: int, n: int, alpha: float) -> None:
    bound = float(lower_bound(torch.tensor([successes]), n, alpha)[0])
    if successes == 0:
        assert bound == 0
        return
    again = bisect(lambda p: float(binom.sf(successes - 1, n, p)) - alpha, 1e-12, 1 - 1e-12, xtol=1e-14)
    assert bound == pytest.approx(again, abs=1e-9)


def test_the_bound_covers_the_truth_as_often_as_it_says() -> None:
    p, n, alpha = 0.83, 60, 0.05
    s = torch.arange(n + 1)
    above = (lower_bound(s, n, alpha) > p).numpy()
    assert 0.01 < float(binom.pmf(s.numpy(), n, p)[above].sum()) <= alpha


def test_votes_follow_the_known_probability_and_no_batch_size() -> None:
    layer, x = two_classes(), points(6)
    sigma, draws = 0.5, 4000
    streams = Streams.from_seed(3, torch.arange(6))
    counts = vote_counts(layer, x, sigma, draws, streams=streams)
    assert counts.sum(1).tolist() == [draws] * 6
    p = norm.cdf(distance(layer, x).numpy() / sigma)
    tail = binom.cdf(counts[:, 1].numpy(), draws, p)
    assert ((tail > 1e-4) & (tail < 1 - 1e-4)).all()
    some = torch.tensor([4, 1])
    again = vote_counts(layer, x[some], sigma, draws, streams=streams.select(some), batch_size=7)
    assert torch.equal(again, counts[some])
    other = vote_counts(layer, x, sigma, draws, streams=Streams.from_seed(4, torch.arange(6)))
    assert not torch.equal(other, counts)


def test_radii_stay_below_the_known_ones_and_near_them() -> None:
    layer, x = two_classes(), points(60)
    sigma, alpha, n = 0.6, 0.01, 4000
    found = certify(layer, x, sigma, n0=100, n=n, alpha=alpha)
    truth = distance(layer, x).abs()
    assert int((found.radius > truth).sum()) <= 3  # each with probability 0.01
    reachable = truth < 2 * sigma  # beyond, n draws cannot tell how sure the vote is
    sure = reachable & (found.prediction != ABSTAIN)
    assert int(sure.sum()) > 20
    assert float((truth - found.radius)[sure].max()) < 0.25 * sigma
    assert float(found.radius.max()) <= sigma * float(ndtri(alpha ** (1 / n))) + 1e-9
    right = found.prediction[found.prediction != ABSTAIN]
    assert torch.equal(right, (distance(layer, x) > 0).long()[found.prediction != ABSTAIN])
    assert (found.radius[found.prediction == ABSTAIN] == 0).all()


def test_certificates_hold_against_ten_thousand_probes() -> None:
    """The smoothed classifier of a linear model is the model: no point within a radius may have the other class."""
    layer = two_classes()
    x = points(20)
    x = x[distance(layer, x).abs() < 1.2]
    found = certify(layer, x, 0.6, n=2000, alpha=1e-4)
    sure = found.prediction != ABSTAIN
    assert int(sure.sum()) >= 8
    x, radius, prediction = x[sure], found.radius[sure].float(), found.prediction[sure]
    generator = torch.Generator().manual_seed(2)
    rays = torch.randn(10_000 // len(x), len(x), D, generator=generator)
    rays = rays / rays.norm(dim=2, keepdim=True) * radius[:, None]
    with torch.no_grad():
        assert (layer(x + rays).argmax(2) == prediction).all()
    direction = (layer.weight[1] - layer.weight[0]).detach() * (1 - 2 * prediction[:, None].float())
    worst = x + radius[:, None] * direction / direction.norm(dim=1, keepdim=True)
    assert torch.equal(layer(worst).argmax(1), prediction)
    for row, r in enumerate(radius.tolist()):
        outcome = evaluate(
            PGD(steps=20), layer, x[row : row + 1], prediction[row : row + 1], Threat("l2", r, bounds=(-50, 50))
        )
        assert not outcome.success.any()
    beyond = x + 1.6 * (radius[:, None] + 0.1) * direction / direction.norm(dim=1, keepdim=True)
    assert not torch.equal(layer(beyond).argmax(1), prediction), (
        "the probes are able to break a radius that is too large"
    )


def test_prediction_abstains_near_the_border_and_nowhere_else() -> None:
    layer = two_classes()
    with torch.no_grad():
        w = layer.weight[1] / layer.weight[1].norm()
        on_border = -0.7 / layer.weight[1].norm() * w
    x = torch.stack([on_border, on_border + w, on_border - w])
    assert smooth_predict(layer, x, 0.5, draws=500).tolist() == [ABSTAIN, 1, 0]
    assert decided(torch.tensor([[50, 50, 0], [80, 20, 0], [0, 1, 99]]), 0.001).tolist() == [ABSTAIN, 0, 2]


def test_certificates_from_counts() -> None:
    found = certificates(torch.tensor([2, 0]), torch.tensor([100, 40]), 100, 0.5, 0.001)
    assert found.prediction.tolist() == [2, ABSTAIN]
    assert float(found.radius[0]) == pytest.approx(0.5 * norm.ppf(0.001**0.01))
    assert found.holds(torch.tensor([2, 0]), 0.0).tolist() == [True, False]
    assert found.holds(torch.tensor([2, 0]), 0.9).tolist() == [False, False]
    assert math.isinf(float(certified_radius(torch.tensor([1.0]), 0.5)))


def test_the_smoothed_module_averages_probabilities_over_one_fixed_noise() -> None:
    layer, x = two_classes(), points(5)
    module = Smoothed(layer, sigma=0.5, copies=3000, seed=1)
    with torch.no_grad():
        p = module(x).exp()
        assert torch.allclose(p.sum(1), torch.ones(5), atol=1e-5)
        assert torch.equal(module(x), module(x))
        assert torch.allclose(module(x[2:3]), module(x)[2:3], atol=1e-5)
        noise = 0.5 * torch.randn(20_000, 1, D, generator=torch.Generator().manual_seed(9))
        expected = layer(x + noise).softmax(2).mean(0)
    assert torch.allclose(p, expected, atol=0.03)
    assert not torch.equal(Smoothed(layer, 0.5, 3000, seed=2)(x), module(x))
    assert list(module.state_dict()) == ["body.weight", "body.bias"], "noise belongs to the seed, not to the weights"


def test_the_smoothed_gradient_is_that_of_the_average() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    x = points(2).double().requires_grad_()
    assert torch.autograd.gradcheck(Smoothed(body, 0.4, copies=5), (x,))


def test_a_gradient_costs_one_pass_of_the_smoothed_module() -> None:
    """Its noise is inside and fixed: attacks must not average over further passes, as they do for random models."""
    rows: list[int] = []
    layer, x = two_classes(), points(3)
    layer.register_forward_hook(lambda _, inputs, output: rows.append(len(inputs[0])))
    input_gradient(Smoothed(layer, 0.5, copies=4), x, lambda logits: logits[:, 0])
    assert sum(rows) == 12


def test_noise_training_uses_the_noise() -> None:
    x, y = torch.zeros(2000, D), torch.zeros(2000, dtype=torch.int64)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 2)

    moment = Moment(0.0, torch.Generator().manual_seed(0))
    GaussianNoise(CrossEntropy(), 0.3)(Spy(), x, y, moment)
    assert float(seen[0].std()) == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"sigma": math.inf}, {"sigma": 0.5, "copies": 0}])
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UnsupportedError):
        Smoothed(two_classes(), **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedError, match="n0 is 0"):
        certify(two_classes(), points(1), 0.5, n0=0)
    with pytest.raises(UnsupportedError, match="nothing to count"):
        vote_counts(two_classes(), points(0), 0.5, 10, streams=Streams.from_seed(0, torch.arange(0)))
