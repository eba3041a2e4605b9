"""Clipping rules: sensitivity, known answers, and noise that adds up to the budget."""

import math
from dataclasses import replace

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy import dp_sgd
from auditorch.privacy.accounting import Budget
from auditorch.privacy.clipping import Clipping, ClippingName
from auditorch.privacy.dp_sgd import DPConfig, dp_fine_tune
from auditorch.privacy.guidance import Setting, advice
from auditorch.privacy.private_run import PrivateRun, Task
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

SILENT = DPConfig(noise_multiplier=0.0, delta=1e-5, epochs=1, batch_size=24, lr=1.0)


@pytest.fixture(autouse=True)
def instant_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    def account(noise: float, rate: float, steps: int, delta: float) -> Budget:
        return Budget(1.0, delta, "prv", 1.0, 1.0, 1.1, noise, rate, steps)

    monkeypatch.setattr(dp_sgd, "epsilon", account)


def task(n: int = 24) -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7, generator=generator)
    return module, torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def vector(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def gradients(module: nn.Module, x: Tensor, y: Tensor) -> list[list[Tensor]]:
    """By record, by layer."""
    found = []
    for i in range(len(x)):
        one = torch.autograd.grad(cross_entropy(module(x[i : i + 1]), y[i : i + 1]), list(module.parameters()))
        flat = [part.flatten() for part in one]
        found.append([torch.cat(flat[:2]), torch.cat(flat[2:])])
    return found


def moved(config: DPConfig) -> Tensor:
    module, x, y = task()
    return vector(dp_fine_tune(module, x, y, config=config).module) - vector(module)


@pytest.mark.parametrize("name", ["flat", "per_layer", "automatic", "adaptive"])
@pytest.mark.parametrize("bound", [0.3, 2.0])
def test_one_step_is_the_sum_by_hand(name: ClippingName, bound: float) -> None:
    module, x, y = task()
    total = torch.zeros_like(vector(module))
    for layers in gradients(module, x, y):
        whole = torch.cat(layers)
        if name == "per_layer":
            part = bound / math.sqrt(2)
            whole = torch.cat([layer * min(1.0, part / float(layer.norm())) for layer in layers])
        elif name == "automatic":
            whole = whole * bound / (float(whole.norm()) + 0.01)
        else:
            whole = whole * min(1.0, bound / float(whole.norm()))
        assert whole.norm() <= bound * 1.0001
        total += whole
    found = moved(replace(SILENT, clipping=name, max_grad_norm=bound))
    torch.testing.assert_close(found, -total / 24, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["flat", "per_layer", "automatic", "adaptive"])
def test_no_record_can_move_a_step_by_more_than_the_bound(name: ClippingName) -> None:
    """However large, and however the layers share the length."""
    generator = torch.Generator().manual_seed(0)
    squared = torch.rand(4, 500, generator=generator) * 10 ** torch.empty(1, 500).uniform_(-6, 6, generator=generator)
    clipping = Clipping(name, 0.7, groups=[0, 0, 1, 2], expected_batch=100)
    weights, _ = clipping.weights(squared)
    lengths = torch.stack([weight.square() * part for weight, part in zip(weights, squared, strict=True)]).sum(0).sqrt()
    assert lengths.max() <= 0.7 * (1 + 1e-5)
    assert lengths.max() > 0.69, "the bound is used"


def test_adaptive_bound_follows_the_quantile() -> None:
    """Norms spread evenly over 0..2: the bound goes to the quantile, whatever it starts from."""
    generator = torch.Generator().manual_seed(0)
    for start in (0.05, 20.0):
        clipping = Clipping("adaptive", start, groups=[0], expected_batch=400, quantile=0.7)
        for _ in range(200):
            clipping.weights(torch.rand(1, 400, generator=generator).mul(2).square())
            clipping.adapt(torch.randn((), generator=generator))
        assert clipping.bound == pytest.approx(1.4, rel=0.12)


def test_adaptive_noise_adds_up_to_the_budget() -> None:
    """Two Gaussian queries, gradients with z_g and half counts with 2 s, spend as much as one with z."""
    clipping = Clipping("adaptive", 1.0, groups=[0], expected_batch=100)
    for z in (0.5, 1.0, 3.0):
        gradient = clipping.gradient_noise(z)
        assert gradient > z
        assert gradient**-2 + (2 * clipping.count_noise) ** -2 == pytest.approx(z**-2)
    assert Clipping("flat", 1.0, [0], 100).gradient_noise(1.0) == 1.0
    clipping.check(9.9)
    with pytest.raises(UnsupportedError, match="would cost more than the whole budget"):
        clipping.check(10.0)


def test_adaptive_steps_get_the_larger_noise() -> None:
    module, x, y = task()
    config = replace(SILENT, noise_multiplier=2.0, clipping="adaptive")
    run = PrivateRun(module, Task(x, y, lambda z, y: cross_entropy(z, y, reduction="none")), config, 2.0, 1e-12, 1)
    expected = (2.0**-2 - (2 * 24 / 20) ** -2) ** -0.5
    assert run.noise == pytest.approx(expected)
    spread = []
    for _ in range(60):
        run._begin_sums(len(spread))
        spread.append(run.flat.clone())
    assert float(torch.cat(spread).std()) == pytest.approx(expected / 24, rel=0.04)


def test_views_are_averaged_before_clipping() -> None:
    """Three copies of a record, each scaled: its gradient is the mean of theirs, clipped once."""
    module, x, y = task()
    factors = torch.tensor([0.5, 1.0, 2.0])

    def scale(x: Tensor, generator: torch.Generator) -> Tensor:
        return x * factors.repeat(len(x) // 3).unsqueeze(1)

    total = torch.zeros_like(vector(module))
    for i in range(len(x)):
        rows = x[i] * factors.unsqueeze(1)
        loss = cross_entropy(module(rows), y[i].expand(3))
        one = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
        total += one * min(1.0, 0.4 / float(one.norm()))
    config = replace(SILENT, views=3, max_grad_norm=0.4, physical_batch=9)
    result = dp_fine_tune(module, x, y, config=config, augment=scale)
    torch.testing.assert_close(vector(result.module) - vector(module), -total / 24, rtol=1e-4, atol=1e-6)
    with pytest.raises(UnsupportedError, match="nothing tells them apart"):
        dp_fine_tune(module, x, y, config=config)


def test_moving_average_and_cosine() -> None:
    """EMA with warm-up and the rate by hand over the noise-free steps."""
    module, x, y = task()
    config = replace(SILENT, epochs=3, ema=0.99, schedule="cosine", max_grad_norm=100.0, lr=0.5)
    result = dp_fine_tune(module, x, y, config=config)
    now = vector(module)
    mean = now.clone()
    for step in range(3):
        torch.nn.utils.vector_to_parameters(now, module.parameters())
        loss = cross_entropy(module(x), y)
        grad = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
        now = now - 0.5 * 0.5 * (1 + math.cos(math.pi * step / 3)) * grad
        mean += (1 - (2 + step) / (11 + step)) * (now - mean)
    torch.testing.assert_close(vector(result.module), mean, rtol=1e-4, atol=1e-6)


def test_half_precision_is_bounded_and_close() -> None:
    exact = moved(replace(SILENT, max_grad_norm=0.1))
    half = moved(replace(SILENT, max_grad_norm=0.1, precision="bfloat16"))
    assert not torch.equal(half, exact)
    assert float(half.norm()) <= 0.1 * (1 + 1e-5), "24 records of at most 0.1, divided by 24"
    assert float((half - exact).norm()) < 0.03 * float(exact.norm())


def test_records_without_a_finite_gradient_are_left_out() -> None:
    module, x, y = task()
    spoiled = x.clone()
    spoiled[5] = 3e38
    clean = torch.arange(24) != 5
    total = torch.zeros_like(vector(module))
    for layers in gradients(module, x[clean], y[clean]):
        whole = torch.cat(layers)
        total += whole * min(1.0, 1.0 / float(whole.norm()))
    order = torch.cat([torch.arange(5), torch.arange(6, 24), torch.tensor([5])])  # not among the probed records
    result = dp_fine_tune(module, spoiled[order], y[order], config=SILENT)
    assert result.skipped == 1
    assert any("not finite" in text for text in result.warnings)
    torch.testing.assert_close(vector(result.module) - vector(module), -total / 24, rtol=1e-4, atol=1e-6)


class Centred(nn.Module):
    """Takes the batch's mean away: records mix in no layer that could be listed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


class Broadcast(nn.Module):
    """Positions as indices ``(t,)``, with as many places as a batch may have records."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.head = nn.Embedding(6, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.unsqueeze(2) + self.places(torch.arange(6))).tanh().flatten(1))


def test_networks_that_mix_records_are_found() -> None:
    _, x, y = task()
    with pytest.raises(UnsupportedError, match="some layer mixes the records of a batch"):
        dp_fine_tune(Centred(), x, y, config=SILENT)


def test_shared_positions_stay_shared_when_the_batch_has_their_size() -> None:
    """Six records and six places: the index ``(6,)`` must not be taken for one place a record."""
    _, x, y = task()
    module = Broadcast()
    total = torch.zeros_like(vector(module))
    for i in range(6):
        loss = cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        one = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
        total += one * min(1.0, 0.2 / float(one.norm()))
    result = dp_fine_tune(module, x[:6], y[:6], config=replace(SILENT, batch_size=6, max_grad_norm=0.2))
    torch.testing.assert_close(vector(result.module) - vector(module), -total / 6, rtol=1e-4, atol=1e-6)


def test_advice_on_batch_and_rate() -> None:
    good = Setting(8.0, 1e-5, 1.0, 2048, 20, 200, 20_000, 1000, 10.0, 1.0, 0.5, sgd=True)
    assert list(advice(good)) == []
    small = list(advice(replace(good, batch_size=32, steps=12_500)))
    assert "batch_size 32 is small" in small[0]
    assert "try batch_size: " in small[0]
    wild = list(advice(replace(good, lr=2000.0, numbers=10**6)))
    assert "try lr: " in wild[0]
    suggested = float(wild[0].split("try lr: ")[1])
    assert list(advice(replace(good, lr=suggested, numbers=10**6))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clipping": "adaptive", "secure_noise": True}, "does not cover the count"),
        ({"quantile": 1.0}, "quantile is 1.0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"views": 0}, "views"),
    ],
)
def test_unsound_or_senseless_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        replace(SILENT, **change)  # pyright: ignore[reportArgumentType]
