"""TRADES, MART, AWP, Free-AT and the guard of Fast-AT against hand computations."""

import math

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.threat import Norm, Threat
from auditorch.defenses.adversarial_training import AdversarialLoss, OnAdversarial, fast, training_pgd
from auditorch.defenses.awp import Shifted, WeightPerturbation
from auditorch.defenses.catastrophic import OverfittingGuard
from auditorch.defenses.config import TrainingConfig
from auditorch.defenses.free import FreeLoss
from auditorch.defenses.mart import MART
from auditorch.defenses.objectives import CrossEntropy, Moment
from auditorch.defenses.trades import TRADES, DivergenceAscent, divergence
from auditorch.defenses.training import fit
from auditorch.defenses.validation import Accuracy, hold_out
from torch import Tensor, nn

from .toys import network, ring

RADIUS: dict[Norm, float] = {"linf": 0.05, "l2": 0.1, "l1": 0.2}


def fixed(rows: dict[float, list[float]]) -> nn.Module:
    """Logits looked up by the first feature: the loss can be worked out by hand."""

    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([rows[round(float(value), 3)] for value in x[:, 0]])

    return Table()


def logits(probabilities: list[float]) -> list[float]:
    return [math.log(p) for p in probabilities]


def moment(progress: float = 0.5) -> Moment:
    return Moment(progress, torch.Generator().manual_seed(0))


def linear(d: int = 4, k: int = 3) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Linear(d, k)


def batch(n: int = 16, d: int = 4, k: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return 0.2 + 0.6 * torch.rand(n, d, generator=generator), torch.randint(k, (n,), generator=generator)


X, X_ADV, Y = torch.tensor([[0.1], [0.2]]), torch.tensor([[0.3], [0.4]]), torch.tensor([0, 1])
TABLE = fixed({0.1: logits([0.8, 0.2]), 0.2: logits([0.5, 0.5]), 0.3: logits([0.6, 0.4]), 0.4: logits([0.75, 0.25])})


def test_trades_by_hand() -> None:
    kl = [
        0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4),
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
    ]
    expected = -(math.log(0.8) + math.log(0.5)) / 2 + 6 * sum(kl) / 2
    result = TRADES(6.0)(TABLE, X, X_ADV, Y)
    assert float(result.loss) == pytest.approx(expected, rel=1e-5)
    assert int(result.correct) == 1, "counted on the adversarial inputs"
    assert float(TRADES(0.0)(TABLE, X, X_ADV, Y).loss) == pytest.approx(-math.log(0.4) / 2, rel=1e-5)


def test_mart_by_hand() -> None:
    kl = [
        0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4),
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
    ]
    # -log p_y - log(1 - largest wrong p) on the adversarial inputs; two classes, so the second equals the first.
    boosted = [-2 * math.log(0.6), -2 * math.log(0.25)]
    losses = [boosted[0] + 5 * kl[0] * (1 - 0.8), boosted[1] + 5 * kl[1] * (1 - 0.5)]
    assert float(MART(5.0)(TABLE, X, X_ADV, Y).loss) == pytest.approx(sum(losses) / 2, rel=1e-3)
    weighted = float(MART(5.0, (3.0, 1.0))(TABLE, X, X_ADV, Y).loss)
    assert weighted == pytest.approx((3 * losses[0] + losses[1]) / 4, rel=1e-3)


def test_mart_is_finite_where_the_model_is_sure_and_wrong() -> None:
    sure = fixed({0.1: [0.0, 0.0], 0.3: [-200.0, 200.0]})
    assert math.isfinite(float(MART()(sure, X[:1], X_ADV[:1], Y[:1]).loss))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", [OnAdversarial(), TRADES(), MART()], ids=lambda loss: type(loss).__name__)
def test_every_method_trains_in_every_norm_inside_the_ball(norm: Norm, loss: object) -> None:
    x, y = batch()
    threat = Threat(norm, RADIUS[norm])
    seen: list[Tensor] = []

    class Remembering:
        def __call__(self, model: object, clean: Tensor, x_adv: Tensor, labels: Tensor) -> object:
            seen.append(x_adv)
            return loss(model, clean, x_adv, labels)  # pyright: ignore

    attack = DivergenceAscent(5) if isinstance(loss, TRADES) else training_pgd(5)
    module = linear()
    AdversarialLoss(threat, attack, loss=Remembering())(module, x, y, moment()).loss.backward()  # pyright: ignore
    assert threat.contains(seen[0], x).all()
    assert (threat.distance(seen[0], x) > 0.5 * threat.eps).float().mean() > 0.9
    assert module.weight.grad is not None
    assert module.weight.grad.abs().max() > 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_trades_attack_finds_far_more_divergence_than_random_points(norm: Norm) -> None:
    x, y = batch(32, d=64)
    module, threat = linear(d=64).requires_grad_(False), Threat(norm, RADIUS[norm])
    clean = module(x).detach()
    generator = torch.Generator().manual_seed(0)
    found = divergence(clean, module(DivergenceAscent(10)(module, x, y, threat, generator=generator)))
    rivals = [divergence(clean, module(threat.random_start(x, generator))) for _ in range(20)]
    best = torch.stack(rivals).amax(0)
    assert (found > best).all()
    assert float(found.mean()) > 2 * float(best.mean())


def test_trades_attack_reaches_a_closed_form_maximum_on_a_linear_model() -> None:
    """Two classes: KL is largest where the logit difference changes most, up or down: both ends are local maxima."""
    x, y = batch(k=2)
    module, threat = linear(k=2).requires_grad_(False), Threat("linf", 0.05)
    found = divergence(module(x), module(DivergenceAscent(20)(module, x, y, threat)))
    difference = (module.weight[1] - module.weight[0]).sign()
    ends = [divergence(module(x), module(x + sign * 0.05 * difference)) for sign in (1, -1)]
    off = torch.stack([(found - end).abs() / end for end in ends]).amin(0)
    assert float(off.max()) < 1e-3


def test_awp_moves_each_weight_by_gamma_of_its_length_along_its_gradient() -> None:
    x, y = batch(d=2, k=2)
    module = network().train()
    before = [buffer.clone() for buffer in module.buffers()]
    loss = lambda model: CrossEntropy().loss(model(x), y)  # noqa: E731
    torch.manual_seed(0)  # for dropout
    moves = WeightPerturbation(0.01).perturbations(module, loss)
    assert set(moves) == {"0.weight", "4.weight"}, "biases and norm layers stay"
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True)), "the batch counted twice"
    torch.manual_seed(0)
    loss(module).backward()
    for name, move in moves.items():
        weight = module.get_parameter(name)
        assert (move.norm() / weight.norm()).item() == pytest.approx(0.01, rel=1e-4)
        assert weight.grad is not None
        cosine = torch.cosine_similarity(move.flatten(), weight.grad.flatten(), dim=0)
        assert cosine.item() == pytest.approx(1.0, abs=1e-5), "uphill"


def test_awp_gives_the_gradient_at_the_perturbed_weights_and_leaves_the_weights() -> None:
    x, y = batch()
    module = linear()
    before = module.weight.detach().clone()
    move = {"weight": 0.1 * torch.ones(3, 4)}
    CrossEntropy().loss(Shifted(module, move)(x), y).backward()
    assert torch.equal(module.weight, before)
    moved = linear()
    with torch.no_grad():
        moved.weight.add_(0.1)
    CrossEntropy().loss(moved(x), y).backward()
    torch.testing.assert_close(module.weight.grad, moved.weight.grad)


def test_awp_raises_the_loss_and_starts_when_told() -> None:
    x, y = batch()
    threat, module = Threat("linf", 0.05), linear().train()
    plain = AdversarialLoss(threat, training_pgd(5))
    awp = AdversarialLoss(threat, training_pgd(5), awp=WeightPerturbation(0.05, start=0.4))
    values = [objective(module, x, y, moment(0.5)).loss.item() for objective in (plain, awp)]
    assert values[1] > values[0] + 0.01
    assert awp(module, x, y, moment(0.3)).loss.item() == pytest.approx(plain(module, x, y, moment(0.3)).loss.item())
    with pytest.raises(UnsupportedError, match="gamma is 2"):
        WeightPerturbation(2)


def test_free_training_replays_each_batch_and_steps_by_eps_along_the_sign() -> None:
    """Of a linear model the gradient's sign never changes: the perturbation is at the corner after one replay."""
    x, y = batch(8, k=2)
    y = torch.zeros_like(y)
    module, threat = linear(k=2), Threat("linf", 0.05)
    points: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: points.append(args[0].detach().clone()))
    config = TrainingConfig(epochs=1, batch_size=4, lr=1e-9)
    shifts = []
    fit(module, x, y, config=config, objective=FreeLoss(threat, replays=3))
    assert len(points) == 6, "three replays of two batches"
    order = [next(i for i in range(8) if torch.allclose(x[i], p, atol=0.051)) for p in points[0]]
    assert torch.equal(points[0], x[order]), "the first perturbation is none"
    corner = 0.05 * (module.weight[1] - module.weight[0]).sign()
    for point in points[1:3]:
        shifts.append(point - points[0])
        torch.testing.assert_close(shifts[-1], corner.expand(4, 4), atol=1e-6, rtol=0)
    later = torch.stack(points[3:])
    near = torch.stack([(x - row).abs().amax(1).amin() for row in later.flatten(0, 1)])
    torch.testing.assert_close(near, torch.full_like(near, 0.05), atol=1e-6, rtol=0)


def test_free_training_makes_one_backward_pass_per_replay() -> None:
    x, y = batch(12)
    module = linear()
    passes: list[int] = []
    module.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    seen: list[int] = []
    config = TrainingConfig(epochs=2, batch_size=4)
    history = fit(module, x, y, config=config, objective=FreeLoss(Threat("l2", 0.1), replays=4), on_samples=seen.append)
    assert sum(passes) == 2 * 4 * 12
    assert sum(seen) == 2 * 12
    assert 0 < history.epochs[0].accuracy <= 1
    small = TrainingConfig(epochs=1, batch_size=4, physical_batch=2)
    with pytest.raises(UnsupportedError, match="whole"):
        fit(module, x, y, config=small, objective=FreeLoss(Threat("l2", 0.1), replays=4))


def test_guard_notices_a_model_that_only_one_step_cannot_fool() -> None:
    threat = Threat("linf", 0.1)
    x, y = torch.full((32, 1), 0.5), torch.zeros(32, dtype=torch.int64)

    class Scripted:
        """Stands for the single step: finds nothing."""

        def __call__(self, model: object, x: Tensor, y: Tensor, threat: Threat, *, generator: object = None) -> Tensor:
            return x

    module = nn.Linear(1, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[10.0], [-10.0]]))
        module.bias.copy_(torch.tensor([-4.9, 4.9]))  # right at 0.5, wrong below 0.49
    blind = OverfittingGuard(x, y, threat, Scripted())  # pyright: ignore[reportArgumentType]
    reason = blind(module, 1.0)
    assert "catastrophic overfitting" in reason
    assert "100%" in reason
    assert "0% under 5 steps" in reason
    assert OverfittingGuard(x, y, threat, fast(threat))(module, 1.0) == "", "a step that finds them is healthy"
    assert OverfittingGuard(x, y, threat, Scripted(), warmup=0.5)(module, 0.02) == "", "eps is still small"  # pyright: ignore


def test_guard_ends_the_training_with_the_weights_from_before() -> None:
    x, y = ring()
    weights: list[Tensor] = []

    def guard(module: nn.Module, progress: float) -> str:
        assert not module.training
        weights.append(module.get_parameter("0.weight").detach().clone())
        return "it broke" if progress > 0.6 else ""

    module = network()
    history = fit(module, x, y, config=TrainingConfig(epochs=4, lr=0.05), guard=guard)
    assert (len(history.epochs), history.kept) == (3, 1)
    assert history.stopped == "stopped in epoch 3: it broke"
    assert torch.equal(module.get_parameter("0.weight"), weights[1])


def test_robust_validation_is_accuracy_under_attack() -> None:
    x, y = torch.tensor([[0.2], [0.46], [0.9]]), torch.tensor([0, 0, 1])
    module = nn.Linear(1, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        module.bias.copy_(torch.tensor([0.5, -0.5]))
    threat = Threat("linf", 0.1)
    assert Accuracy(x, y)(module) == 1
    assert Accuracy(x, y, training_pgd(5), threat, batch_size=2)(module) == pytest.approx(2 / 3)
    with pytest.raises(UnsupportedError, match="both an attack and a threat"):
        Accuracy(x, y, training_pgd(5))


def test_hold_out_takes_its_share_of_each_class() -> None:
    y = torch.tensor([0] * 60 + [1] * 20 + [2] * 2)
    rows, held = hold_out(y, 0.1, seed=0)
    assert sorted([*rows.tolist(), *held.tolist()]) == list(range(82))
    assert torch.bincount(y[held]).tolist() == [6, 2, 1]
    assert torch.equal(hold_out(y, 0.1, seed=0)[1], held)
    assert not torch.equal(hold_out(y, 0.1, seed=1)[1], held)
    with pytest.raises(UnsupportedError, match="nothing to train on"):
        hold_out(torch.tensor([0, 1]), 0.5, seed=0)


def test_the_attack_leaves_a_float16_autocast_but_not_a_bfloat16_one() -> None:
    """Unscaled gradients of a float16 pass underflow to zero: the attack would have no direction."""
    x, y = batch()
    for precision, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        module = linear()
        seen: list[tuple[bool, torch.dtype]] = []

        def note(layer: nn.Module, _: object, out: Tensor, seen: list[tuple[bool, torch.dtype]] = seen) -> None:
            seen.append((layer.training, out.dtype))

        module.register_forward_hook(note)
        with torch.autocast("cpu", precision):
            AdversarialLoss(Threat("linf", 0.05), training_pgd(2))(module.train(), x, y, moment())
        assert seen == [(False, expected), (False, expected), (True, precision)]
