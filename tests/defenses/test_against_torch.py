"""The loop's optimizers, schedules, accumulation, clipping and half precision against torch's own, step by step."""

import copy

import pytest
import torch
from auditorch.defenses.config import TrainingConfig
from auditorch.defenses.objectives import BatchLoss, CrossEntropy, Moment, balanced_weights
from auditorch.defenses.optimizers import OptimizerName, ScheduleName, learning_rate_factor
from auditorch.defenses.training import fit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim import lr_scheduler as schedulers

from .toys import network, ring, state

X, Y = ring(64)


def plain() -> nn.Sequential:
    """Without dropout and batch statistics, so that a loop by hand needs no random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


def by_hand(optimizer: Optimizer, module: nn.Module, epochs: int, *, clip: float | None = None) -> Tensor:
    for epoch in range(epochs):
        order = torch.randperm(len(Y), generator=torch.Generator().manual_seed(epoch))  # seed 0
        for rows in order.split(16):
            optimizer.zero_grad()
            cross_entropy(module(X[rows]), Y[rows]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
    return state(module)


def ours(**settings: object) -> Tensor:
    module = plain()
    options = {"epochs": 3, "batch_size": 16, "schedule": "constant", **settings}
    fit(module, X, Y, config=TrainingConfig(**options))  # pyright: ignore[reportArgumentType]
    return state(module)


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"optimizer": "sgd", "lr": 0.1}, lambda p: SGD(p, 0.1, momentum=0.9)),
        ({"optimizer": "sgd", "lr": 0.1, "momentum": 0.0}, lambda p: SGD(p, 0.1)),
        ({"optimizer": "sgd", "lr": 0.1, "nesterov": True}, lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True)),
        ({"optimizer": "adam", "lr": 0.01}, lambda p: Adam(p, 0.01)),
        ({"optimizer": "adamw", "lr": 0.01}, lambda p: AdamW(p, 0.01, weight_decay=0)),
        ({"optimizer": "rmsprop", "lr": 0.01, "momentum": 0.5}, lambda p: RMSprop(p, 0.01, momentum=0.5)),
        ({"optimizer": "adagrad", "lr": 0.1}, lambda p: Adagrad(p, 0.1)),
    ],
    ids=["sgd", "sgd without momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad"],
)
def test_every_optimizer_does_what_torchs_does(settings: dict[str, object], make) -> None:  # noqa: ANN001
    module = plain()
    torch.testing.assert_close(ours(**settings), by_hand(make(module.parameters()), module, 3), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_weight_decay_is_torchs_own_on_matrices(optimizer: str) -> None:
    module = plain()
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [p for p in module.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    makers = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop, "adagrad": Adagrad}
    extra = {"momentum": 0.9} if optimizer in ("sgd", "rmsprop") else {}
    expected = by_hand(makers[optimizer](groups, lr=0.02, **extra), module, 3)
    found = ours(optimizer=optimizer, lr=0.02, weight_decay=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found, ours(optimizer=optimizer, lr=0.02), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("constant", lambda o: schedulers.ConstantLR(o, 1.0)),
        ("linear", lambda o: schedulers.LinearLR(o, 1.0, 0.0, total_iters=20)),
        ("cosine", lambda o: schedulers.CosineAnnealingLR(o, 20)),
        ("exponential", lambda o: schedulers.ExponentialLR(o, 0.01 ** (1 / 20))),
        ("step", lambda o: schedulers.MultiStepLR(o, [10, 15])),
    ],
)
def test_every_schedule_is_torchs(name: ScheduleName, make) -> None:  # noqa: ANN001
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    for step in range(20):
        assert learning_rate_factor(name, step, 20) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step()
    warm = [learning_rate_factor(name, step, 25, warmup=0.2) for step in range(25)]
    rising = schedulers.LinearLR(SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 1 / 6, 1.0, total_iters=5)
    for value in warm[:5]:
        assert value == pytest.approx(rising.get_last_lr()[0])
        rising.optimizer.step()
        rising.step()
    assert warm[5:] == pytest.approx([learning_rate_factor(name, step, 20) for step in range(20)])


@pytest.mark.parametrize("size", [1, 5, 16, 100])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(size: int) -> None:
    whole = ours(optimizer="sgd", lr=0.1, epochs=2)
    torch.testing.assert_close(
        ours(optimizer="sgd", lr=0.1, epochs=2, physical_batch=size), whole, rtol=1e-5, atol=1e-7
    )


def test_parts_are_no_larger_than_asked_and_count_once() -> None:
    module, sizes = plain(), []
    module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    seen: list[int] = []
    config = TrainingConfig(epochs=1, batch_size=16, physical_batch=6)
    history = fit(module, X, Y, config=config, on_samples=seen.append)
    assert sizes == [6, 6, 4] * 4
    assert seen == [16] * 4
    assert 0 < history.epochs[0].accuracy <= 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_clipping_sees_the_true_gradients_in_every_precision(precision: str) -> None:
    """Float16 scales the loss by thousands: clipped before unscaling, a step would vanish."""
    before = state(plain())
    settings = {"optimizer": "sgd", "momentum": 0.0, "epochs": 1, "batch_size": 64, "lr": 1.0}
    step = ours(**settings, clip_norm=0.01, precision=precision) - before
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_clipping_is_torchs() -> None:
    module = plain()
    expected = by_hand(SGD(module.parameters(), 0.1, momentum=0.9), module, 3, clip=0.05)
    torch.testing.assert_close(ours(optimizer="sgd", lr=0.1, clip_norm=0.05), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_passes_run_in_half_and_reach_what_float32_reaches(precision: str) -> None:
    dtypes: set[torch.dtype] = set()
    module, full = plain(), plain()
    module[0].register_forward_hook(lambda *args: dtypes.add(args[2].dtype))
    y = (X[:, 0] > 0.5).long()
    fit(module, X, y, config=TrainingConfig(epochs=20, batch_size=16, lr=0.05, precision=precision))  # pyright: ignore
    assert dtypes == {getattr(torch, precision)}
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    fit(full, X, y, config=TrainingConfig(epochs=20, batch_size=16, lr=0.05))
    losses = [cross_entropy(trained.float()(X), y).item() for trained in (module, full)]
    assert losses[1] < 0.3
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_float16_leaves_out_a_step_whose_scaled_gradient_overflows(optimizer: OptimizerName) -> None:
    class Huge:
        def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
            loss, correct = CrossEntropy()(module, x, y, moment)
            return BatchLoss(loss * (1e37 if moment.progress < 0.3 else 1.0), correct)

    module = plain()
    config = TrainingConfig(epochs=1, batch_size=16, precision="float16", optimizer=optimizer, lr=0.1)
    fit(module, X, Y, config=config, objective=Huge())
    assert bool(state(module).isfinite().all())
    assert 1e-3 < (state(module) - state(plain())).abs().max() < 1


def test_a_weight_first_used_without_gradients_still_learns_under_autocast() -> None:
    """Autocast caches casted weights: a cast made under no_grad must not be reused by the training pass."""

    class Looks:
        def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
            with torch.no_grad():
                module(x)
            return CrossEntropy()(module, x, y, moment)

    module = plain()
    fit(module, X, Y, config=TrainingConfig(epochs=1, batch_size=16, precision="bfloat16"), objective=Looks())
    moved = [not torch.equal(a, b) for a, b in zip(module.parameters(), plain().parameters(), strict=True)]
    assert all(moved)


def test_balanced_class_weights_make_a_rare_class_count() -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(400, generator=generator) < 0.05).long()
    x = torch.randn(400, 2, generator=generator) + 1.2 * y[:, None]
    recall = {}
    for name, weights in (("plain", None), ("balanced", balanced_weights(y, 2))):
        module = nn.Linear(2, 2)
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
        config = TrainingConfig(epochs=20, batch_size=50, lr=0.05)
        fit(module, x, y, config=config, objective=CrossEntropy(class_weights=weights))
        recall[name] = ((module(x).argmax(1) == 1) & (y == 1)).sum().item() / int(y.sum())
    assert recall["plain"] < 0.35
    assert recall["balanced"] > 0.7


def test_average_is_validated_and_kept() -> None:
    module, seen = network(), []

    def validate(candidate: nn.Module) -> float:
        seen.append(state(candidate))
        return 0.0 if len(seen) > 1 else 1.0

    fit(module, X, Y, config=TrainingConfig(epochs=3, batch_size=16, ema=0.5), validate=validate)
    raw = copy.deepcopy(network())
    fit(raw, X, Y, config=TrainingConfig(epochs=3, batch_size=16), validate=lambda _: 0.0)
    assert torch.equal(state(module), seen[0]), "the best epoch's average"
    assert not torch.equal(seen[0], state(raw))
