"""Shadow models: side by side gives what training in turn gives, whatever the architecture."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy.shadow.fresh import fresh
from auditorch.privacy.shadow.layers import StackedConv
from auditorch.privacy.shadow.stack import How, Products, stack
from auditorch.privacy.shadow.training import ShadowConfig, Shadows, halves, train_shadows
from torch import Tensor, nn


class Residual(nn.Module):
    """A forward of its own, with a shortcut and a reshape by batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.norm(self.second(x)))
        return self.head(x.view(x.size(0), 4, -1).mean(2))


class Viewed(nn.Module):
    """Asks for a view of pictures, which only channels in their usual place in memory allow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


class Token(nn.Module):
    """Has a parameter outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 64))
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) + self.shift)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.squeeze(1))[0][:, -1])


class Centred(nn.Module):
    """Mixes the samples of a batch, so that models would see each other's samples."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(x - x.mean(0))


def mlp() -> nn.Module:
    layers = [("flat", nn.Flatten()), ("a", nn.Linear(64, 16)), ("n", nn.LayerNorm(16)), ("r", nn.GELU())]
    return nn.Sequential(OrderedDict([*layers, ("b", nn.Linear(16, 3, bias=False))]))


def pooled(flat: type[nn.Module] = nn.Flatten) -> nn.Module:
    first, second = nn.Conv2d(1, 8, (3, 2)), nn.Conv2d(8, 16, 3, padding="same", bias=False)
    return nn.Sequential(first, nn.ReLU(), nn.AvgPool2d(2), second, nn.MaxPool2d(1), flat(), nn.Linear(144, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),  # a bias before BatchNorm has no gradient but rounding
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 6, bias=False),
        nn.BatchNorm1d(6, momentum=None),
        nn.Linear(6, 3),
    )


def data(n: int = 60, side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, 1, side, side, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def trained(module: nn.Module, how: How, x: Tensor, y: Tensor, optimizer: str = "adam") -> Shadows:
    config = ShadowConfig(models=4, epochs=2, batch_size=8, how=how, optimizer=optimizer, lr=0.01)  # pyright: ignore[reportArgumentType]
    return train_shadows(module, x, y, config)


@pytest.mark.parametrize(
    ("build", "how"),
    [
        (mlp, "products"),
        (Residual, "products"),
        (pooled, "products"),
        (batch_norm, "products"),
        (Token, "vmap"),
        (mlp, "vmap"),
    ],
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_side_by_side_gives_what_training_in_turn_gives(build: type[nn.Module], how: How, optimizer: str) -> None:
    x, y = data()
    side, turn = (trained(build(), way, x, y, optimizer) for way in (how, "turn"))
    assert (side.how, turn.how) == (how, "turn")
    assert torch.equal(side.member, turn.member)
    assert torch.allclose(side.logits(x), turn.logits(x), atol=2e-4)
    # Training moved the models: the agreement is not that of models left as they began.
    untrained = [fresh(build(), k)(x) for k in range(4)]
    assert (turn.logits(x) - torch.stack(untrained).detach()).abs().max() > 0.05


@pytest.mark.parametrize(("flat", "last"), [(nn.Flatten, True), (Viewed, False)])
def test_channels_come_last_before_pooling_where_nothing_forbids_it(flat: type[nn.Module], last: bool) -> None:
    x, _ = data()
    made = stack([pooled(flat) for _ in range(2)], x[:4])
    assert isinstance(made, Products)
    layers = [layer for layer in made.module.modules() if isinstance(layer, StackedConv)]
    assert [layer.channels_last for layer in layers] == [last, last]


@pytest.mark.parametrize("n", [60, 61])
def test_the_agreement_is_exact_but_for_rounding(n: int) -> None:
    x, y = data(n)
    x = x.double()
    config = ShadowConfig(models=4, epochs=10, batch_size=8, lr=0.01)
    side, turn = (train_shadows(mlp().double(), x, y, replace(config, how=how)) for how in ("products", "turn"))
    assert torch.allclose(side.logits(x), turn.logits(x), atol=1e-6)  # logits come back in float32


def test_a_large_picture_of_one_channel_takes_the_other_way_through_the_convolution() -> None:
    x, y = data(24, side=24)
    module = nn.Sequential(nn.Conv2d(1, 3, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(300, 3))
    side, turn = (trained(module, how, x, y) for how in ("products", "turn"))
    assert torch.allclose(side.logits(x), turn.logits(x), atol=1e-4)


@pytest.mark.parametrize(
    ("build", "how"),
    [(mlp, "products"), (batch_norm, "products"), (Token, "vmap"), (Recurrent, "turn"), (Centred, "vmap")],
)
def test_the_fastest_way_that_is_right_is_chosen(build: type[nn.Module], how: str) -> None:
    x, _ = data(4)
    models = [fresh(build(), k) for k in range(3)]
    alone = torch.stack([model.eval()(x) for model in models])
    stacked = stack(models, x)
    stacked.train(False)
    assert stacked.how == how
    assert torch.allclose(stacked(x.expand(3, *x.shape)), alone, atol=1e-5)


def test_a_way_that_cannot_work_says_why() -> None:
    x, _ = data(4)
    with pytest.raises(UnsupportedError, match=r"rnn \(GRU\) cannot be stacked"):
        stack([Recurrent(), Recurrent()], x, "products")
    with pytest.raises(UnsupportedError, match="differ from those of the models by themselves"):
        stack([fresh(Centred(), 0), fresh(Centred(), 1)], x, "products")


def test_trained_weights_come_back_into_the_models() -> None:
    x, y = data()
    shadows = trained(batch_norm(), "products", x, y)
    models = shadows.stacks[0].models()
    again = torch.stack([model(x).detach() for model in models])
    assert torch.allclose(again, shadows.logits(x), atol=1e-5)


def test_every_record_is_in_half_of_the_models_and_every_model_has_half_of_the_records() -> None:
    member = halves(101, 6, seed=1)
    assert member.sum(0).unique().tolist() == [3]
    assert set(member.sum(1).tolist()) == {50, 51}
    assert not torch.equal(member, halves(101, 6, seed=2))
    # Which records go together differs between pairs.
    assert 30 < int((member[0] == member[2]).sum()) < 71


def test_models_remember_their_own_half() -> None:
    x, y = data()
    config = ShadowConfig(models=4, epochs=60, batch_size=10, lr=0.02)
    shadows = train_shadows(mlp(), x, y, config)
    right = shadows.logits(x).argmax(2) == y
    assert right[shadows.member].float().mean() > 0.95
    assert right[~shadows.member].float().mean() < 0.6


def test_groups_bound_memory_and_change_nothing() -> None:
    x, y = data()
    together = trained(mlp(), "products", x, y)
    config = ShadowConfig(models=4, epochs=2, batch_size=8, lr=0.01, group=2, how="products")
    apart = train_shadows(mlp(), x, y, config)
    assert len(apart.stacks) == 2
    assert torch.allclose(together.logits(x), apart.logits(x), atol=1e-5)


def test_fresh_weights_differ_from_the_given_ones_and_leave_the_global_generator_alone() -> None:
    module = nn.Sequential(Token(), batch_norm())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
        module.get_buffer("1.1.running_mean").fill_(7.0)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = fresh(module, 1), fresh(module, 1), fresh(module, 2)
    assert torch.equal(torch.rand(1), expected)
    assert all(not (parameter == 7).any() for parameter in first.parameters())
    assert first.get_buffer("1.1.running_mean").abs().max() == 0
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_a_module_without_parameters_or_too_few_records_are_refused() -> None:
    x, y = data(8)
    with pytest.raises(UnsupportedError, match="Flatten has no parameters to train"):
        train_shadows(nn.Flatten(), x, y, ShadowConfig())
    with pytest.raises(UnsupportedError, match="at least 4"):
        train_shadows(mlp(), x[:3], y[:3], ShadowConfig())


@pytest.mark.parametrize(
    ("options", "message"), [({"models": 3}, "even number"), ({"epochs": 0}, "at least 1"), ({"lr": 0.0}, "lr above 0")]
)
def test_bad_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        ShadowConfig(**options)  # pyright: ignore[reportArgumentType]
