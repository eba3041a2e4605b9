import copy
import math

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.defenses.objectives import BatchLoss, CrossEntropy, Moment, balanced_weights
from auditorch.defenses.optimizers import learning_rate_factor
from auditorch.defenses.scope import blocks, head, reset_head
from auditorch.defenses.training import DivergedError, TrainingConfig, fit
from torch import Tensor, nn


def spirals(n: int = 240) -> tuple[Tensor, Tensor]:
    """Two classes that no line separates: inside and outside a circle."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return x, (x.norm(dim=1) > 1.2).long()


def network(dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 2)).eval()


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def layer(module: nn.Module, name: str) -> nn.Linear:
    found = module.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize(
    ("optimizer", "lr", "nesterov"),
    [
        ("sgd", 0.1, False),
        ("sgd", 0.1, True),
        ("adam", 0.02, False),
        ("adamw", 0.02, False),
        ("rmsprop", 0.005, False),
        ("adagrad", 0.1, False),
    ],
)
def test_every_optimizer_learns(optimizer: str, lr: float, nesterov: bool) -> None:
    x, y = spirals()
    module = network()
    assert accuracy(module, x, y) < 0.75
    config = TrainingConfig(epochs=30, batch_size=32, optimizer=optimizer, lr=lr, nesterov=nesterov)  # pyright: ignore
    history = fit(module, x, y, config=config)
    assert accuracy(module, x, y) > 0.95
    assert len(history.epochs) == 30
    assert history.epochs[-1].loss < history.epochs[0].loss / 2
    assert history.epochs[-1].accuracy > 0.93


def test_same_seed_same_weights_and_global_random_state_is_left_alone() -> None:
    x, y = spirals()
    config = TrainingConfig(epochs=2, seed=3)
    runs = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        module = network(dropout=0.5)
        fit(module, x, y, config=config)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(weights(module))
    assert torch.equal(runs[0], runs[1])
    other = network(dropout=0.5)
    fit(other, x, y, config=TrainingConfig(epochs=2, seed=4))
    assert not torch.equal(weights(other), runs[0])


def test_modes_and_flags_are_left_as_found() -> None:
    x, y = spirals(40)
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    module[1].eval()
    before = layer(module, "0").weight.detach().clone()
    fit(module, x, y, config=TrainingConfig(epochs=1))
    assert [layer.training for layer in module] == [True, False, True]
    assert [parameter.requires_grad for parameter in module.parameters()] == [False, False, True, True, True, True]
    assert torch.equal(layer(module, "0").weight, before), "a parameter that was frozen moved"
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(("scope", "moved"), [("head", {"2"}), (1, {"2"}), (2, {"1", "2"}), ("all", {"0", "1", "2"})])
def test_scope_trains_only_its_part(scope: str | int, moved: set[str]) -> None:
    x, y = spirals(64)
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = copy.deepcopy(module.state_dict())
    fit(module, x, y, config=TrainingConfig(epochs=1, scope=scope, lr=0.1))  # pyright: ignore
    changed = {
        name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == moved, "frozen weights or BatchNorm statistics moved, or trained ones did not"


def test_blocks_look_through_wrappers_and_too_many_are_refused() -> None:
    body = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    assert blocks(nn.Sequential(body)) == [body[0], body[2]]
    assert head(nn.Sequential(body)) is body[2]
    with pytest.raises(UnsupportedError, match=r"last 3 blocks.*has 2"):
        fit(body, *spirals(8), config=TrainingConfig(scope=3))
    with pytest.raises(UnsupportedError, match="no parameters"):
        head(nn.ReLU())


def test_reset_head_changes_the_head_alone() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    reset_head(module, 7)
    first = layer(module, "3").weight.detach().clone()
    assert torch.equal(layer(module, "0").weight, before["0.weight"])
    assert not torch.equal(first, before["3.weight"])
    reset_head(module, 7)
    assert torch.equal(layer(module, "3").weight, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_divergence_keeps_the_last_good_weights() -> None:
    x, y = spirals()

    class BlowsUp:
        def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
            loss, correct = CrossEntropy()(module, x, y, moment)
            return BatchLoss(loss * (math.nan if moment.progress >= 2 / 3 else 1.0), correct)

    module = network()
    with pytest.raises(DivergedError, match=r"diverged in epoch 3.*end of epoch 2.*Lower lr") as caught:
        fit(module, x, y, config=TrainingConfig(epochs=3, schedule="constant"), objective=BlowsUp())
    assert len(caught.value.history.epochs) == 2
    two = network()
    fit(two, x, y, config=TrainingConfig(epochs=2, schedule="constant"))
    assert torch.equal(weights(module), weights(two))


def test_divergence_in_the_first_epoch_gives_the_weights_back() -> None:
    x, y = spirals()
    module = network()
    before = weights(module)
    with pytest.raises(DivergedError, match="before the training"):
        fit(module, x * 1e30, y, config=TrainingConfig(optimizer="sgd", lr=1e30))
    assert torch.equal(weights(module), before)


def test_early_stopping_keeps_the_best_epoch() -> None:
    x, y = spirals()
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    seen: list[Tensor] = []

    def validate(module: nn.Module) -> float:
        assert not module.training
        seen.append(weights(module))
        return next(scores)

    module = network()
    history = fit(module, x, y, config=TrainingConfig(epochs=9, patience=2), validate=validate)
    assert (len(history.epochs), history.kept) == (4, 1)
    assert torch.equal(weights(module), seen[1])
    assert [epoch.validation for epoch in history.epochs] == [0.1, 0.5, 0.4, 0.3]


def test_moving_average_equals_the_average_computed_by_hand() -> None:
    x, y = spirals(32)
    plain = [weights(network())]
    for epochs in (1, 2, 3):
        module = network()
        config = TrainingConfig(epochs=epochs, batch_size=32, optimizer="sgd", lr=0.5, schedule="constant")
        fit(module, x, y, config=config)
        plain.append(weights(module))
    mean = plain[0]
    for update, value in enumerate(plain[1:], start=1):
        decay = min(0.2, (1 + update) / (10 + update))
        mean = decay * mean + (1 - decay) * value
    averaged = network()
    config = TrainingConfig(epochs=3, batch_size=32, optimizer="sgd", lr=0.5, schedule="constant", ema=0.2)
    fit(averaged, x, y, config=config)
    torch.testing.assert_close(weights(averaged), mean)
    assert not torch.allclose(mean, plain[-1], atol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
        ("exponential", [1, 0.316228, 0.1, 0.0316228]),
        ("step", [1, 1, 0.1, 0.01]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    factors = [learning_rate_factor(schedule, step, 4) for step in range(4)]  # pyright: ignore
    assert factors == pytest.approx(expected, rel=1e-4)
    warm = [learning_rate_factor(schedule, step, 8, warmup=0.5) for step in range(8)]  # pyright: ignore
    assert warm[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert warm[4:] == pytest.approx(expected, rel=1e-4)


def test_weight_decay_spares_biases() -> None:
    class Nothing:
        def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
            return BatchLoss(0 * module(x).sum(), torch.zeros(()))

    x, y = spirals(8)
    module = network()
    before = copy.deepcopy(module.state_dict())
    config = TrainingConfig(epochs=1, batch_size=8, lr=0.1, weight_decay=0.5, schedule="constant")
    fit(module, x, y, config=config, objective=Nothing())
    torch.testing.assert_close(layer(module, "0").weight.detach(), before["0.weight"] * 0.95)
    assert torch.equal(layer(module, "0").bias, before["0.bias"])


def test_clipping_bounds_the_step() -> None:
    x, y = spirals(16)
    lengths = []
    for clip in (None, 0.01):
        module = network()
        before = weights(module)
        config = TrainingConfig(epochs=1, batch_size=16, optimizer="sgd", momentum=0, lr=1.0, clip_norm=clip)
        fit(module, 50 * x, y, config=config)
        lengths.append(float((weights(module) - before).norm()))
    assert lengths[0] > 1
    assert lengths[1] == pytest.approx(0.01, rel=1e-3)


def test_class_weights_and_label_smoothing_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
    y = torch.tensor([0, 2])
    log_p = logits.log_softmax(1)
    picked = torch.stack([log_p[0, 0], log_p[1, 2]])
    weighted = CrossEntropy(class_weights=(1.0, 1.0, 3.0)).loss(logits, y)
    torch.testing.assert_close(weighted, -(picked * torch.tensor([1.0, 3.0])).sum() / 4)
    smooth = CrossEntropy(label_smoothing=0.3).loss(logits, y)
    torch.testing.assert_close(smooth, -(0.7 * picked + 0.3 * log_p.mean(1)).mean())
    assert balanced_weights(torch.tensor([0, 0, 0, 1]), 3) == pytest.approx((4 / 9, 4 / 3, 1.0))


def test_progress_counts_every_sample_and_a_short_last_batch_is_used() -> None:
    x, y = spirals(50)
    seen: list[int] = []
    fit(network(), x, y, config=TrainingConfig(epochs=2, batch_size=32), on_samples=seen.append)
    assert seen == [32, 18, 32, 18]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fit(network(), torch.empty(0, 2), torch.empty(0).long(), config=TrainingConfig()), "0 inputs"),
        (lambda: fit(network(), spirals()[0][:7], spirals()[1], config=TrainingConfig()), "7 inputs"),
        (lambda: fit(network(), *spirals(), config=TrainingConfig(patience=1)), "patience needs validate"),
        (lambda: TrainingConfig(epochs=0), "epochs is 0"),
        (lambda: TrainingConfig(lr=-1), "lr is -1"),
        (lambda: fit(network(), *spirals(), config=TrainingConfig(ema=1.0)), "ema is 1.0"),
    ],
)
def test_bad_arguments(make, message: str) -> None:  # noqa: ANN001
    with pytest.raises(UnsupportedError, match=message):
        make()
