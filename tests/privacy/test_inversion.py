"""Inversion of a classifier of digits: its classes' means come out, more than from a model that learned nothing."""

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy.inversion.gradient import GradientInversion, likeness, total_variation
from auditorch.privacy.shadow.fresh import fresh
from auditorch.privacy.shadow.training import ShadowConfig, fit
from sklearn.datasets import load_digits
from torch import Tensor, nn


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A classifier of 8 x 8 digits, the mean picture of each class, and of all."""
    pictures, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pictures).float().div(16).view(-1, 1, 8, 8), torch.from_numpy(labels)
    model = fresh(network(), 1)
    config = ShadowConfig(epochs=15, batch_size=64, lr=1e-2, weight_decay=0.05)
    fit([model], x, y, [torch.arange(len(x))], config)
    assert float((model(x).argmax(1) == y).float().mean()) > 0.95
    return model, torch.stack([x[y == c].mean(0) for c in range(10)]), x.mean(0)


ALL = torch.arange(10)


def test_the_means_of_the_classes_come_out(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, means, centre = digits
    attack = GradientInversion(steps=100)
    found = attack(model, ALL, (1, 8, 8), mean=centre)
    blank = attack(fresh(network(), 5), ALL, (1, 8, 8), mean=centre)
    like, of_blank = likeness(found, means, centre), likeness(blank, means, centre)
    assert bool((model(found).argmax(1) == ALL).all())
    assert found.min() >= 0
    assert found.max() <= 1
    # The right class among ten, and much closer than what an untrained network gives.
    assert bool((like.argmax(1) == ALL).all())
    assert float(like.diag().mean()) > 0.6
    assert abs(float(of_blank.diag().mean())) < 0.25


def test_the_priors_do_what_they_say(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, _, centre = digits

    def found(**options: float) -> Tensor:
        settings = {"steps": 60, "tv": 0.0, "prior": 0.0, **options}
        return GradientInversion(**settings)(model, ALL, (1, 8, 8), mean=centre)  # pyright: ignore[reportArgumentType]

    bare = found()
    assert total_variation(found(tv=20.0)).mean() < 0.7 * total_variation(bare).mean()
    assert ((found(prior=100.0) - centre) ** 2).mean() < 0.5 * ((bare - centre) ** 2).mean()


def test_the_same_seed_gives_the_same_picture_and_tables_can_be_inverted(
    digits: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, _, _ = digits
    attack = GradientInversion(steps=5)
    one, two = (attack(model, ALL[:2], (1, 8, 8), seed=3) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, attack(model, ALL[:2], (1, 8, 8), seed=4))
    table = fresh(nn.Linear(5, 2), 0)
    rows = GradientInversion(steps=40, prior=0.1)(table, torch.tensor([0, 1]), (5,), bounds=(-1.0, 1.0))
    assert table(rows).argmax(1).tolist() == [0, 1]
    assert all(parameter.requires_grad for parameter in table.parameters())


def test_likeness_is_a_correlation_around_the_centre() -> None:
    means = torch.tensor([[[[2.0, 0.0]]], [[[0.0, 2.0]]]])
    centre = means.mean(0)
    found = likeness(torch.tensor([[[[3.0, -1.0]]], [[[1.0, 1.0]]]]), means, centre)
    assert found[0].tolist() == pytest.approx([1.0, -1.0])
    assert found[1].tolist() == pytest.approx([0.0, 0.0])


def test_what_gives_no_gradients_or_makes_no_sense_is_refused() -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).detach()[:, :3]

    with pytest.raises(UnsupportedError, match="no gradient"):
        GradientInversion(steps=2)(Blind(), torch.tensor([0]), (1, 4, 4))
    with pytest.raises(UnsupportedError, match="steps"):
        GradientInversion(steps=1)
