"""Universal perturbations: the closed form on linear models, norms, bounds, repeatability."""

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.threat import Norm, Threat
from auditorch.attacks.universal.perturbation import UniversalPerturbation, perturbed
from torch import Tensor, nn


def linear(k: int = 2, d: int = 12) -> nn.Linear:
    layer = nn.Linear(d, k)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(k, d, generator=torch.Generator().manual_seed(0)))
        layer.bias.zero_()
    return layer


def inputs(n: int = 40, d: int = 12) -> Tensor:
    return 0.3 + 0.4 * torch.rand(n, d, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_it_is_the_sign_of_the_difference_of_weights(targeted: bool) -> None:
    model = linear()
    y = torch.full((40,), 1 if targeted else 0)
    delta = UniversalPerturbation(steps=60).fit(model, inputs(), y, Threat("linf", 0.1, targeted))
    assert torch.allclose(delta, 0.1 * (model.weight[1] - model.weight[0]).sign(), atol=1e-6)


def test_in_l2_it_is_the_direction_of_the_difference_of_weights() -> None:
    model = linear()
    delta = UniversalPerturbation(steps=80).fit(model, inputs(), torch.zeros(40, dtype=torch.int64), Threat("l2", 0.2))
    difference = (model.weight[1] - model.weight[0]).detach()
    assert torch.allclose(delta, 0.2 * difference / difference.norm(), atol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_fools_inputs_it_has_not_seen_and_stays_in_ball_and_bounds(norm: Norm) -> None:
    model, x = linear(5, 30), torch.rand(300, 30, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = model(x).argmax(1)
    threat = Threat(norm, {"linf": 0.2, "l2": 1.0}[norm])
    delta = UniversalPerturbation().fit(model, x[:150], y[:150], threat)
    seen = perturbed(x, delta, threat.bounds)
    assert threat.contains(seen, x).all()
    direction = torch.randn(30, generator=torch.Generator().manual_seed(3))
    length = direction.abs().amax() if norm == "linf" else direction.norm()
    noise = 0.2 * direction.sign() if norm == "linf" else threat.eps * direction / length
    fooled, control = (
        (model(perturbed(x[150:], d, (0, 1))).argmax(1) != y[150:]).float().mean() for d in (delta, noise)
    )
    assert fooled > 0.5
    assert fooled > control + 0.25


def test_it_repeats_and_leaves_the_model_as_found() -> None:
    model = nn.Sequential(linear(3), nn.Dropout(0.5)).train()
    x, y = inputs(), torch.arange(40) % 3
    attack = UniversalPerturbation(steps=5, batch_size=16)
    runs = [attack.fit(model, x, y, Threat("linf", 0.1), generator=torch.Generator().manual_seed(s)) for s in (4, 4, 5)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_nonsense_is_refused() -> None:
    x, y = inputs(), torch.zeros(40, dtype=torch.int64)
    with pytest.raises(UnsupportedError, match="linf, l2"):
        UniversalPerturbation().fit(linear(), x, y, Threat("l1", 1.0))
    with pytest.raises(UnsupportedError, match="no gradient"):
        UniversalPerturbation().fit(lambda x: linear()(x).detach(), x, y, Threat("linf", 0.1))
    with pytest.raises(UnsupportedError, match="above 0"):
        UniversalPerturbation(steps=0)
