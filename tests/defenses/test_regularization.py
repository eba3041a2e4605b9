"""Mixing, penalties, spectral norm, dropout and distillation against closed forms."""

import copy

import numpy as np
import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.defenses.config import TrainingConfig
from auditorch.defenses.distillation import Distillation
from auditorch.defenses.dropout import dropout
from auditorch.defenses.mixing import CutMix, Mixup, OneOf, mixing
from auditorch.defenses.objectives import CrossEntropy, Moment
from auditorch.defenses.penalties import InputGradient, Jacobian
from auditorch.defenses.regularization import Regularized
from auditorch.defenses.spectral_norm import largest_singular_value, spectral_norm
from auditorch.defenses.training import fit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .toys import images, network, ring, state


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moment(seed: int = 0) -> Moment:
    return Moment(0.5, generator(seed))


def linear(d: int = 6, k: int = 3) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Linear(d, k)


def batch(n: int = 32, d: int = 6, k: int = 3) -> tuple[Tensor, Tensor]:
    return torch.rand(n, d, generator=generator(1)), torch.randint(k, (n,), generator=generator(2))


def test_mixup_mixes_pairs_and_weighs_both_labels() -> None:
    x, y = batch()
    module = linear()
    result = Regularized(mixing=Mixup(1.0))(module, x, y, moment())
    source = generator()
    share = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=source))).beta(1.0, 1.0)
    partner = torch.randperm(len(x), generator=source)
    log_p = module(share * x + (1 - share) * x[partner]).log_softmax(1)
    rows = torch.arange(len(x))
    expected = -(share * log_p[rows, y] + (1 - share) * log_p[rows, y[partner]]).mean()
    torch.testing.assert_close(result.loss, expected, check_dtype=False)
    assert 0.05 < share < 0.95


def test_mixups_share_follows_its_beta_distribution() -> None:
    x = torch.zeros(2, 1)
    source = generator()
    for alpha in (0.2, 1.0, 8.0):
        shares = np.array([Mixup(alpha)(x, source).share for _ in range(2000)])
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmix_labels_count_by_the_area_that_was_pasted() -> None:
    """Each image is filled with its own number, so the area is read off the mixture."""
    x = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 2, 10, 8).clone()
    source, areas = generator(), []
    for _ in range(300):
        mixed, partner, share = CutMix(1.0)(x, source)
        kept = (mixed == x).float().mean((1, 2, 3))
        moved = partner != torch.arange(16)
        torch.testing.assert_close(kept[moved], torch.full_like(kept[moved], share))
        assert ((mixed == x) | (mixed == x[partner])).all()
        areas.append(share)
    assert float(np.mean(areas)) > 0.5, "rectangles are cut at the edges"
    assert len(set(areas)) > 30
    with pytest.raises(UnsupportedError, match="changes images"):
        CutMix()(torch.rand(4, 3), source)


def test_no_mixing_is_cross_entropy_and_several_take_turns() -> None:
    x, y = batch()
    module = linear()
    plain = Regularized(0.1)(module, x, y, moment())
    torch.testing.assert_close(plain.loss, CrossEntropy(0.1)(module, x, y, moment()).loss)
    assert mixing(0, 0) is None
    assert mixing(0.3, 0) == Mixup(0.3)
    assert mixing(0, 0.5) == CutMix(0.5)
    both = mixing(1.0, 1.0)
    assert both == OneOf((Mixup(1.0), CutMix(1.0)))
    assert both is not None
    pictures, source = images(8), generator()
    whole = [bool(torch.isin(both(pictures, source).x, pictures).all()) for _ in range(40)]
    assert 8 < sum(whole) < 32, "CutMix takes pixels over, mixup blends them"
    for make in (Mixup, CutMix):
        with pytest.raises(UnsupportedError, match="alpha is -1"):
            make(-1)


def test_input_gradient_penalty_in_closed_form() -> None:
    """Of a linear model the loss gradient of one sample is W^T (p - onehot)."""
    x, y = batch()
    module = linear()
    plain = CrossEntropy()(module, x, y, moment()).loss
    error = module(x).softmax(1) - torch.nn.functional.one_hot(y, 3)
    expected = plain + 0.7 * (error @ module.weight).pow(2).sum(1).mean()
    result = Regularized(penalties=(InputGradient(0.7),))(module, x, y, moment())
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    assert module.weight.grad is not None
    by_hand = torch.autograd.grad(expected, module.weight)[0]
    torch.testing.assert_close(module.weight.grad, by_hand, msg="the penalty itself must be differentiated")


def test_jacobian_penalty_of_a_linear_model_is_its_frobenius_norm() -> None:
    x, y = batch()
    module = linear()
    plain = CrossEntropy()(module, x, y, moment()).loss
    square = module.weight.pow(2).sum()
    exact = Regularized(penalties=(Jacobian(0.5, None),))(module, x, y, moment()).loss
    torch.testing.assert_close(exact - plain, 0.25 * square)
    estimates = [Regularized(penalties=(Jacobian(0.5, 2),))(module, x, y, moment(s)).loss - plain for s in range(60)]
    assert torch.stack(estimates).mean().item() == pytest.approx(0.25 * square.item(), rel=0.05)
    assert torch.stack(estimates).std().item() > 0


def test_jacobian_penalty_of_a_network_agrees_with_autograd() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.rand(4, 3, dtype=torch.float64, generator=generator()), torch.tensor([0, 1, 0, 1])
    exact = [torch.autograd.functional.jacobian(module, row[None]).pow(2).sum() for row in x]
    loss = Regularized(penalties=(Jacobian(1.0, None),))(module, x, y, moment()).loss
    torch.testing.assert_close(loss - cross_entropy(module(x), y), torch.stack(exact).mean() / 2)


@pytest.mark.parametrize("make", [InputGradient, Jacobian])
def test_penalties_refuse_negative_weights(make: type) -> None:
    with pytest.raises(UnsupportedError, match="-1"):
        make(-1)


def test_penalties_flatten_the_trained_network() -> None:
    x, y = ring(128)
    steepness = {}
    for name, penalties in (("plain", ()), ("gradient", (InputGradient(1.0),)), ("jacobian", (Jacobian(0.3),))):
        module = network(0.0)
        config = TrainingConfig(epochs=25, batch_size=32, lr=0.03)
        fit(module, x, y, config=config, objective=Regularized(penalties=penalties))
        rows = torch.stack([torch.autograd.functional.jacobian(module, row[None]).pow(2).sum() for row in x[:30]])
        steepness[name] = float(rows.mean())
    assert steepness["gradient"] < 0.5 * steepness["plain"]
    assert steepness["jacobian"] < 0.5 * steepness["plain"]


def test_spectral_norm_is_held_during_training_and_baked_in_after() -> None:
    x, y = images(48), torch.arange(48) % 2
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    module[3].bias.requires_grad_(False)
    names = list(module.state_dict())
    with spectral_norm(module, 1.5):
        fit(module, x, y, config=TrainingConfig(epochs=20, batch_size=16, lr=0.02))
        before = module(x).detach()
    assert list(module.state_dict()) == names, "the structure is as before"
    torch.testing.assert_close(module(x).detach(), before)
    for place in ("0", "3"):
        weight = module.get_parameter(f"{place}.weight")
        singular = np.linalg.svd(weight.detach().flatten(1).numpy(), compute_uv=False)[0]
        assert singular == pytest.approx(1.5, rel=0.01)
        assert largest_singular_value(weight) == pytest.approx(float(singular), rel=1e-4)
        assert weight.requires_grad
    assert not module.get_parameter("3.bias").requires_grad
    with pytest.raises(UnsupportedError, match="no linear layer"), spectral_norm(nn.ReLU()):
        pass


def test_dropout_is_set_in_layers_that_are_there_and_added_before_the_head_otherwise() -> None:
    module = network(0.1)
    with dropout(module, 0.4):
        assert module.get_submodule("3").p == 0.4  # pyright: ignore[reportAttributeAccessIssue]
    assert module.get_submodule("3").p == 0.1  # pyright: ignore[reportAttributeAccessIssue]
    bare = nn.Sequential(nn.Linear(2, 400), nn.ReLU(), nn.Linear(400, 400, bias=False))
    with torch.no_grad():
        bare.get_parameter("2.weight").copy_(torch.eye(400))
        bare.get_parameter("0.weight").zero_()
        bare.get_parameter("0.bias").fill_(1.0)
    x = torch.rand(8, 2)
    plain = bare(x)
    with dropout(bare.train(), 0.25):
        dropped = bare(x)
        assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
        torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / 0.75))
        assert torch.equal(bare.eval()(x), plain), "nothing is dropped in eval mode"
    assert torch.equal(bare.train()(x), plain), "the hook is gone"
    with pytest.raises(UnsupportedError, match="dropout is 1"), dropout(bare, 1.0):
        pass


def test_distillation_by_hand_and_its_gradient_does_not_shrink_with_temperature() -> None:
    x, y = batch(k=3)
    teacher, student = linear(), nn.Linear(6, 3)
    loss = Distillation(teacher, temperature=2.0, weight=0.3)(student, x, y, moment()).loss
    p, q = (teacher(x) / 2).softmax(1), (student(x) / 2).softmax(1)
    soft = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, 0.3 * soft + 0.7 * cross_entropy(student(x), y))

    # At high temperature the gradient with respect to centred logits tends to (z - v) / k (section 2.1).
    z = torch.tensor([[1.0, -1.0, 0.0]], requires_grad=True)

    class Given(nn.Module):
        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.values = values

        def forward(self, x: Tensor) -> Tensor:
            return self.values

    v = torch.tensor([[0.5, 0.5, -1.0]])
    Distillation(Given(v), 200.0, 1.0)(Given(z), x[:1], y[:1], moment()).loss.backward()
    torch.testing.assert_close(z.grad, (z.detach() - v) / 3, rtol=0.02, atol=1e-3)


def test_distillation_leaves_the_teacher_as_it_is() -> None:
    x, y = ring()
    teacher = network().train()
    before = copy.deepcopy(teacher.state_dict())
    student = network(0.0)
    fit(student, x, y, config=TrainingConfig(epochs=1), objective=Distillation(teacher))
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(state(student), state(network(0.0)))
    with pytest.raises(UnsupportedError, match="answer in shapes"):
        Distillation(nn.Linear(2, 5))(student, x, y, moment())
    for options, message in (({"temperature": 0}, "temperature is 0"), ({"weight": 2}, "weight is 2")):
        with pytest.raises(UnsupportedError, match=message):
            Distillation(teacher, **options)  # pyright: ignore[reportArgumentType]


def test_a_student_learns_from_answers_alone() -> None:
    """With weight 1 the labels (here: nonsense) play no part."""
    x, y = ring(160)
    teacher = network(0.0)
    fit(teacher, x, y, config=TrainingConfig(epochs=40, batch_size=32, lr=0.03))
    student = network(0.0)
    config = TrainingConfig(epochs=40, batch_size=32, lr=0.03)
    fit(student, x, torch.zeros_like(y), config=config, objective=Distillation(teacher, 2.0, 1.0))
    with torch.no_grad():
        agreement = float((student(x).argmax(1) == teacher(x).argmax(1)).float().mean())
        taught = float((teacher(x).argmax(1) == y).float().mean())
    assert taught > 0.9
    assert agreement > 0.93
