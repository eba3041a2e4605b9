import copy
import math
from dataclasses import replace

import pytest
import torch
from auditorch.attacks.errors import AuditError, UnsupportedError
from auditorch.privacy import dp_sgd
from auditorch.privacy.accounting import Budget
from auditorch.privacy.dp_sgd import DPConfig, DPResult, dp_fine_tune
from auditorch.privacy.layers import private_structure
from auditorch.privacy.private_run import PrivateRun, Task
from auditorch.privacy.randomness import Streams
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

NOISE_FREE = DPConfig(noise_multiplier=0.0, delta=1e-5, epochs=1, batch_size=16, lr=1.0)


@pytest.fixture(autouse=True)
def instant_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accountants have tests of their own and take seconds."""

    def account(noise: float, rate: float, steps: int, delta: float) -> Budget:
        return Budget(1.0, delta, "prv", 1.0, 1.0, 1.1, noise, rate, steps)

    monkeypatch.setattr(dp_sgd, "epsilon", account)


def data(n: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 6, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(1, 4, 3)
        return nn.Sequential(conv, nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


def with_batch_norm() -> nn.Sequential:
    module = network()
    module[1] = nn.BatchNorm2d(4)
    return module.eval()


def vector(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def step_of(result: DPResult, module: nn.Module) -> Tensor:
    return vector(result.module) - vector(module)


def row_loss(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits, y, reduction="none")


def clipped_sum(module: nn.Module, x: Tensor, y: Tensor, bound: float) -> Tensor:
    """Per-sample gradients by a loop over samples, each clipped, added up."""
    total = torch.zeros_like(vector(module))
    for i in range(len(x)):
        gradients = torch.autograd.grad(cross_entropy(module(x[i : i + 1]), y[i : i + 1]), list(module.parameters()))
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        total += flat * min(1.0, bound / float(flat.norm()))
    return total


@pytest.mark.parametrize("bound", [0.05, 1.5, 1e6])
@pytest.mark.parametrize("physical", [None, 5])
def test_clipping_equals_a_loop_over_samples(bound: float, physical: int | None) -> None:
    x, y = data()
    module = network()
    config = replace(NOISE_FREE, max_grad_norm=bound, physical_batch=physical)
    result = dp_fine_tune(module, x, y, config=config)
    expected = -clipped_sum(module, x, y, bound) / 16
    torch.testing.assert_close(step_of(result, module), expected, rtol=1e-4, atol=1e-6)
    assert result.clipped == pytest.approx({0.05: 1.0, 1e6: 0.0}.get(bound, result.clipped))


def test_noise_has_the_claimed_size_and_is_missed_when_switched_off() -> None:
    """One step on the same records with and without noise: the difference has deviation lr * sigma * bound / batch."""
    x, y = data()
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 200), nn.ReLU(), nn.Linear(200, 3))
    config = replace(NOISE_FREE, max_grad_norm=0.7)
    silent = step_of(dp_fine_tune(module, x, y, config=config), module)
    claimed = 1.3 * 0.7 / 16
    for secure in (False, True):
        noisy = dp_fine_tune(module, x, y, config=replace(config, noise_multiplier=1.3, secure_noise=secure))
        noise = step_of(noisy, module) - silent
        size = len(noise)
        assert size > 7000
        assert float(noise.std()) == pytest.approx(claimed, rel=4 / math.sqrt(2 * size))
        assert abs(float(noise.mean())) < 4 * claimed / math.sqrt(size)
    assert torch.equal(step_of(dp_fine_tune(module, x, y, config=config), module), silent)


def test_noise_differs_between_steps() -> None:
    x, y = data()
    module = network()
    bound = 1e-6  # gradients vanish, noise remains
    config = replace(NOISE_FREE, noise_multiplier=1e6, max_grad_norm=bound, batch_size=16)
    one = step_of(dp_fine_tune(module, x, y, config=config), module)
    two = step_of(dp_fine_tune(module, x, y, config=replace(config, epochs=2)), module)
    second = two - one
    similarity = float(torch.nn.functional.cosine_similarity(one, second, dim=0))
    assert abs(similarity) < 0.3


def test_sums_are_divided_by_the_expected_batch_size_not_rounded() -> None:
    """Ten records at an expected batch of 3: the rate is 0.3, and whatever is drawn is divided by 3."""
    x, y = data(10)
    module = network()
    result = dp_fine_tune(module, x, y, config=replace(NOISE_FREE, batch_size=3, epochs=1, seed=5, max_grad_norm=9))
    assert result.budget.sample_rate == 0.3
    assert result.budget.steps == 4
    streams = Streams.of(5)
    replay = copy.deepcopy(module)
    sizes = []
    for step in range(4):
        coins = torch.rand(10, generator=streams.generator("sampling", step), dtype=torch.float64)
        index = (coins < 0.3).nonzero().squeeze(1)
        sizes.append(len(index))
        update = clipped_sum(replay, x[index], y[index], 9) / 3
        torch.nn.utils.vector_to_parameters(vector(replay) - update, replay.parameters())
    assert len(set(sizes)) > 1, "a Poisson sample varies in size"
    torch.testing.assert_close(vector(result.module), vector(replay), rtol=1e-4, atol=1e-6)


def test_empty_batches_add_noise_and_count() -> None:
    x, y = data(4)
    module = network()
    config = replace(NOISE_FREE, noise_multiplier=1.0, batch_size=1, epochs=10)
    result = dp_fine_tune(module, x, y, config=config)
    assert result.empty_batches > 0
    assert result.budget.steps == 40
    assert vector(result.module).isfinite().all()
    lone = PrivateRun(copy.deepcopy(module), Task(x, y, row_loss), config, 1.0, 1e-12, 1)
    before = vector(lone.module)
    with lone:
        lone.step()
    moved = vector(lone.module) - before
    assert lone.state.empty == lone.state.steps == 1
    assert float(moved.std()) == pytest.approx(1.0, rel=0.3)


def test_epsilon_sets_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float, int, float]] = []

    def noise_for(target: float, rate: float, steps: int, delta: float) -> float:
        asked.append((target, rate, steps, delta))
        return 0.9

    monkeypatch.setattr(dp_sgd, "noise_for", noise_for)
    x, y = data(20)
    result = dp_fine_tune(network(), x, y, config=DPConfig(epsilon=4.0, epochs=3, batch_size=10))
    assert asked == [(4.0, 0.5, 6, pytest.approx(20**-1.1))]
    assert (result.budget.noise_multiplier, result.budget.steps) == (0.9, 6)


def test_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (300,), generator=generator)
    x = torch.randn(300, 1, 6, 6, generator=generator) + 1.5 * nn.functional.one_hot(y, 36).view(-1, 1, 6, 6) * 2
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    config = DPConfig(noise_multiplier=1.0, epochs=10, batch_size=100, lr=1.0)
    result = dp_fine_tune(module, x, y, config=config)
    assert float((result.module(x).argmax(1) == y).float().mean()) > 0.85
    assert result.history[-1].loss < result.history[0].loss
    assert len(result.history) == 10


def test_seeds() -> None:
    x, y = data()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    config = replace(NOISE_FREE, noise_multiplier=1.0, epochs=2, batch_size=8)
    module = nn.Sequential(network(), nn.Dropout(0.5))
    first, again = (dp_fine_tune(module, x, y, config=config) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(vector(first.module), vector(again.module))
    assert any("whoever knows it can subtract the noise" in text for text in first.warnings)
    secret, other = (dp_fine_tune(module, x, y, config=replace(config, seed=None)) for _ in range(2))
    assert not torch.equal(vector(secret.module), vector(other.module))
    assert not any("subtract the noise" in text for text in secret.warnings)


def test_the_result_is_a_plain_module_and_the_input_is_untouched() -> None:
    x, y = data()
    module = network().train()
    before = vector(module)
    result = dp_fine_tune(module, x, y, config=replace(NOISE_FREE, noise_multiplier=1.0))
    assert torch.equal(vector(module), before)
    assert type(result.module) is nn.Sequential
    assert result.module.training
    for layer in result.module.modules():
        assert not layer._forward_hooks
        assert not layer._backward_hooks
    assert not any(hasattr(p, "grad_sample") or hasattr(p, "summed_grad") for p in result.module.parameters())
    copy.deepcopy(result.module)(x).sum().backward()


def test_batch_norm_becomes_group_norm_and_says_so() -> None:
    x, y = data()
    module = with_batch_norm()
    norm = module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.fill_(2.5)
    result = dp_fine_tune(module, x, y, config=replace(NOISE_FREE, lr=1e-9))
    replaced = result.module.get_submodule("1")
    assert isinstance(replaced, nn.GroupNorm)
    assert replaced.num_groups == 4
    torch.testing.assert_close(replaced.weight.detach(), torch.full((4,), 2.5))
    assert any("1 BatchNorm layer (1) became GroupNorm" in text for text in result.warnings)
    rates = [float((net.eval()(x).argmax(1) == y).float().mean()) for net in (module, private_structure(module)[0])]
    told = f"On 16 training records the network was right on {rates[0]:.1%} before the layers were replaced and on "
    assert any(text.startswith(f"{told}{rates[1]:.1%} after") for text in result.warnings)
    assert isinstance(module.get_submodule("1"), nn.BatchNorm2d)


def test_frozen_batch_norm_stays_and_its_statistics_do_not_move() -> None:
    x, y = data()
    module = with_batch_norm()
    module.get_submodule("1").requires_grad_(False)
    before = copy.deepcopy(module.get_submodule("1").state_dict())
    result = dp_fine_tune(module, x, y, config=NOISE_FREE)
    after = result.module.get_submodule("1").state_dict()
    assert isinstance(result.module.get_submodule("1"), nn.BatchNorm2d)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.equal(result.module.state_dict()["4.weight"], module.state_dict()["4.weight"])


def test_in_place_activations_and_constant_buffers_work() -> None:
    class Shifted(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(0.5))
            self.body = network()
            self.body[2] = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x - self.mean)

    x, y = data()
    module = Shifted()
    result = dp_fine_tune(module, x, y, config=NOISE_FREE)
    module.body[2] = nn.ReLU()
    torch.testing.assert_close(step_of(result, module), -clipped_sum(module, x, y, 1.0) / 16, rtol=1e-4, atol=1e-6)


def test_recurrent_layers_become_opacus_own_with_the_same_weights() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.out = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mix(x.squeeze(1))[0].mean(1))

    x, y = data()
    module = Recurrent()
    private, notes = private_structure(module)
    assert "mix: LSTM became Opacus' own, with the same weights" in notes[0]
    torch.testing.assert_close(private(x), module(x))
    result = dp_fine_tune(module, x, y, config=replace(NOISE_FREE, max_grad_norm=0.1))
    expected = -clipped_sum(private, x, y, 0.1) / 16
    torch.testing.assert_close(step_of(result, private), expected, rtol=1e-3, atol=1e-6)


def test_attention_and_layers_without_a_rule() -> None:
    """A transformer layer keeps its structure; a layer that must run again is named."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    module = nn.Sequential(nn.Flatten(1, 2), layer, nn.PReLU(), nn.Flatten(), nn.Linear(36, 3))
    x, y = data()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    result = dp_fine_tune(module, x, y, config=replace(NOISE_FREE, max_grad_norm=0.2))
    expected = -clipped_sum(module, x, y, 0.2) / 16
    torch.testing.assert_close(step_of(result, module), expected, rtol=1e-3, atol=1e-6)
    assert result.module.state_dict().keys() == module.state_dict().keys()
    assert result.slow_layers == ("2 (PReLU)",)
    assert any("no closed form for 2 (PReLU)" in text for text in result.warnings)


def test_frozen_parameters_stay() -> None:
    x, y = data()
    module = network()
    module.get_submodule("0").requires_grad_(False)
    result = dp_fine_tune(module, x, y, config=replace(NOISE_FREE, noise_multiplier=1.0))
    assert torch.equal(result.module.state_dict()["0.weight"], module.state_dict()["0.weight"])
    assert not torch.equal(result.module.state_dict()["4.weight"], module.state_dict()["4.weight"])


def test_layers_that_learn_statistics_are_refused() -> None:
    class Tracker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("running_mean", torch.zeros(1))

    with pytest.raises(UnsupportedError, match=r"1: it keeps statistics of the data \(running_mean\)"):
        private_structure(nn.Sequential(nn.Linear(2, 2), Tracker()))


def test_a_parameter_that_takes_no_part_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(36, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))

    with pytest.raises(UnsupportedError, match=r"idle\.weight gives no gradient per record"):
        dp_fine_tune(Idle(), *data(), config=NOISE_FREE)


def test_batches_in_the_second_dimension_are_refused() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.out = nn.Linear(6, 6), nn.Linear(36, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rows(x.squeeze(1).transpose(0, 1)).transpose(0, 1).flatten(1))

    with pytest.raises(UnsupportedError, match=r"rows\.weight gives 6 gradients for 2 records"):
        dp_fine_tune(Transposed(), *data(), config=NOISE_FREE)
    with pytest.raises(UnsupportedError, match="batch_first=True"):
        private_structure(nn.Sequential(nn.LSTM(6, 6)))


def test_divergence_is_reported() -> None:
    x, y = data()
    config = replace(NOISE_FREE, lr=1e38, max_grad_norm=1e6, epochs=3)
    with pytest.raises(AuditError, match="diverged after"):
        dp_fine_tune(network(), 1e3 * x, y, config=config)


def test_large_delta_and_missing_noise_are_warned_of() -> None:
    result = dp_fine_tune(network(), *data(), config=replace(NOISE_FREE, delta=0.1))
    assert any("delta 0.1 is above 1/n" in text for text in result.warnings)
    assert any("no privacy guarantee" in text for text in result.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 17}, "batch_size is 17, but there are only 16"),
        ({"epsilon": 1.0}, "either epsilon or noise_multiplier"),
        ({"noise_multiplier": None}, "either epsilon or noise_multiplier"),
        ({"lr": 0}, "lr must be above 0"),
    ],
)
def test_bad_arguments(change: dict[str, float | None], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        dp_fine_tune(network(), *data(), config=replace(NOISE_FREE, **change))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedError, match="0 inputs and 0 labels"):
        dp_fine_tune(network(), *(tensor[:0] for tensor in data()), config=NOISE_FREE)
