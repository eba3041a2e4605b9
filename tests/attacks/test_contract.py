"""What every registered attack promises (see the Attack protocol), checked on each."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from auditorch.attacks.attack import Attack, Model, Randomness
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import MissingExtraError, UnsupportedError
from auditorch.attacks.evasion.transfer import Transfer
from auditorch.attacks.models import CountingModel
from auditorch.attacks.streams import Streams
from auditorch.attacks.threat import NORMS, Norm, Threat
from auditorch.audit import registry
from torch import Tensor, nn

from .oracles import linear_problem

SHAPE = (1, 8, 8)
EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.8, "l1": 3.0, "l0": 8.0}
# Cheaper settings for attacks whose defaults take long; a name that is missing here runs with its defaults.
CHEAP: dict[str, object] = {
    "steps": 12,
    "queries": 150,
    "max_queries": 150,
    "focus_steps": 12,
    "focus_restarts": 1,
    "focus_queries": 50,
    "iterations": 3,
    "max_iter": 3,
    "max_eval": 60,
    "init_eval": 10,
}


@dataclasses.dataclass(frozen=True)
class OnItself:
    """A transfer attack whose surrogate is the model itself, of which it then gets the gradients after all."""

    attack: Transfer

    norms = Transfer.norms
    access = Transfer.access

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        inner = model.model if isinstance(model, CountingModel) else model
        attack = dataclasses.replace(self.attack, surrogate=inner)  # pyright: ignore[reportArgumentType]
        return attack(model, x, y, threat, generator=generator)


def attack_named(name: str) -> Attack:
    kind = registry.load("attacks", name)
    if kind is Transfer:
        return OnItself(Transfer(steps=12, kernel=1))
    fields = {field.name for field in dataclasses.fields(kind)}
    try:
        return kind(**{key: value for key, value in CHEAP.items() if key in fields})
    except MissingExtraError as error:
        pytest.skip(str(error))


def norms_of(attack: Attack) -> tuple[Norm, ...]:
    return getattr(attack, "norms", NORMS)


def network(classes: int = 4) -> nn.Sequential:
    """A small image classifier with batch norm and dropout, both of which betray train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(4 * 36, classes),
        )


def samples(model: nn.Module, n: int = 5) -> tuple[Tensor, Tensor]:
    """Inputs with their predicted classes, so that all are attackable."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, *SHAPE, generator=generator)
    with torch.no_grad():
        return x, model.eval()(x).argmax(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=registry.names("attacks"))
def attack(request: pytest.FixtureRequest) -> Attack:
    return attack_named(request.param)


@pytest.fixture
def threat(attack: Attack) -> Threat:
    norm = norms_of(attack)[0]
    return Threat(norm, EPS[norm])


def test_every_norm_keeps_ball_bounds_shape_and_dtype(attack: Attack) -> None:
    model = network()
    x, y = samples(model)
    for norm in norms_of(attack):
        threat = Threat(norm, EPS[norm])
        x_adv = attack(model, x, y, threat, generator=seeded())
        assert x_adv.shape == x.shape
        assert x_adv.dtype == x.dtype
        assert not x_adv.requires_grad
        assert threat.in_bounds(x_adv).all(), norm
        if not getattr(attack, "minimal", False):
            assert threat.contains(x_adv, x).all(), norm


def test_inputs_are_not_changed(attack: Attack, threat: Threat) -> None:
    model = network()
    x, y = samples(model)
    before = x.clone(), y.clone()
    attack(model, x, y, threat, generator=seeded())
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_finds_something_on_a_linear_model(attack: Attack, threat: Threat) -> None:
    problem = linear_problem(4, SHAPE, 2)
    generous = Threat(threat.norm, 3 * float(problem.distance(threat.norm).max()))
    outcome = evaluate(attack, problem.model, problem.x, problem.y, generous)
    assert outcome.success.double().mean() >= 0.75
    too_small = Threat(threat.norm, 0.9 * float(problem.distance(threat.norm).min()))
    assert not evaluate(attack, problem.model, problem.x, problem.y, too_small).success.any()


def test_same_generator_same_result(attack: Attack, threat: Threat) -> None:
    model = network()
    x, y = samples(model)
    first = attack(model, x, y, threat, generator=seeded(3))
    assert torch.equal(first, attack(model, x, y, threat, generator=seeded(3)))


def test_global_randomness_is_neither_read_nor_changed(attack: Attack, threat: Threat) -> None:
    model = network()
    x, y = samples(model)
    torch.manual_seed(1)
    first = attack(model, x, y, threat, generator=seeded(3))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = attack(model, x, y, threat, generator=seeded(3))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_batch_size_and_order_do_not_matter(attack: Attack, threat: Threat) -> None:
    model = network()
    x, y = samples(model)
    model, x = model.double(), x.double()  # float32 kernels round differently for each batch size
    ids = torch.tensor([9, 4, 7, 1, 30])
    together = attack(model, x, y, threat, generator=Streams.from_seed(5, ids))
    order = torch.tensor([3, 0, 4, 2, 1])
    for rows in order.split(2):
        apart = attack(model, x[rows], y[rows], threat, generator=Streams.from_seed(5, ids[rows]))
        torch.testing.assert_close(apart, together[rows], atol=1e-6, rtol=0)


def test_model_comes_back_as_found(attack: Attack, threat: Threat) -> None:
    model = network()
    x, y = samples(model)
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    weight, bias = model[5].parameters()
    weight.grad = torch.ones_like(weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attack(model, x, y, threat, generator=seeded())
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True, True, True]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert bias.grad is None


def test_batch_of_one_and_of_none(attack: Attack, threat: Threat) -> None:
    model = network()
    x, y = samples(model)
    assert attack(model, x[:1], y[:1], threat, generator=seeded()).shape == (1, *SHAPE)
    assert attack(model, x[:0], y[:0], threat, generator=seeded()).shape == (0, *SHAPE)


def test_already_misclassified_comes_back_unchanged(attack: Attack, threat: Threat) -> None:
    model = network()
    x, y = samples(model)
    y[1], y[3] = (y[1] + 1) % 4, (y[3] + 1) % 4
    x_adv = attack(model, x, y, threat, generator=seeded())
    assert torch.equal(x_adv[[1, 3]], x[[1, 3]])


def test_two_classes(attack: Attack, threat: Threat) -> None:
    model = network(2)
    x, y = samples(model)
    x_adv = attack(model, x, y, threat, generator=seeded())
    assert threat.in_bounds(x_adv).all()


def test_nan_logits_never_count_as_success(attack: Attack, threat: Threat) -> None:
    """The model answers NaN wherever the input was touched."""

    class Brittle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            touched = (flat - clean[:, None]).abs().amax(2).amin(0) > 1e-7
            logits = torch.stack([flat.sum(1), flat.sum(1) * 0 - 1], dim=1)
            return torch.where(touched[:, None], torch.nan, logits)

    model = Brittle()
    x, _ = samples(network(), 3)
    clean = x.flatten(1)
    outcome = evaluate(attack, model, x, torch.zeros(3, dtype=torch.int64), threat)
    assert not outcome.success.any()
    assert torch.equal(outcome.x_adv, x)


def test_no_gradient_is_refused_by_white_box_attacks(attack: Attack, threat: Threat) -> None:
    if getattr(attack, "access", "gradients") != "gradients":
        pytest.skip("needs no gradients")
    inner = network()
    x, y = samples(inner)
    for blind in (lambda batch: inner(batch.detach()), torch.no_grad()(inner.forward)):
        inner.requires_grad_(False)
        with pytest.raises(UnsupportedError, match="black-box"):
            attack(blind, x, y, threat, generator=seeded())


def test_unknown_norm_is_refused(attack: Attack) -> None:
    model = network()
    x, y = samples(model)
    for norm in set(NORMS) - set(norms_of(attack)):
        with pytest.raises(UnsupportedError, match=norm):
            attack(model, x, y, Threat(norm, EPS[norm]), generator=seeded())


def test_targeted_success_is_the_target(attack: Attack, threat: Threat) -> None:
    problem = linear_problem(4, SHAPE, 2)
    eps = 3 * float(problem.distance(threat.norm).max())
    targeted = Threat(threat.norm, eps, targeted=True)
    target = 1 - problem.y
    try:
        outcome = evaluate(attack, problem.model, problem.x, target, targeted)
    except UnsupportedError as error:
        assert "targeted" in str(error)  # noqa: PT017  refusing is allowed, if it says so
        return
    assert outcome.success.double().mean() >= 0.75
    assert (problem.model(outcome.x_adv).argmax(1) == target)[outcome.success].all()
