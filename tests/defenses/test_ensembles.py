"""Combinations against their definitions, weights against a second optimiser, the vote's surrogate against attacks."""

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import Threat
from auditorch.defenses.ensembles import Ensemble, fit_weights
from scipy.optimize import minimize
from torch import Tensor, nn


class Says(nn.Module):
    """Always the same logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1) + 0 * x.sum()  # pyright: ignore


SURE, UNSURE, OTHER = Says(0.0, 9.0, 0.0), Says(1.0, 0.0, 0.9), Says(1.0, 0.9, 0.0)


def test_combinations_do_what_they_say() -> None:
    x = torch.zeros(2, 4)
    members = [SURE, UNSURE, OTHER]
    assert torch.allclose(Ensemble(members, "logits")(x), torch.tensor([2 / 3, 3.3, 0.3]).expand(2, 3))
    weighted = Ensemble(members, "weighted")
    weighted.weights.copy_(torch.tensor([0.2, 0.5, 0.3]))
    expected = sum(w * m(x).softmax(1) for w, m in zip((0.2, 0.5, 0.3), members, strict=True))
    assert torch.allclose(weighted(x).exp(), torch.as_tensor(expected))
    votes = Ensemble(members, "majority")(x)
    assert votes.argmax(1).tolist() == [0, 0], "two unsure members outvote a sure one"
    shares = (torch.tensor([2.0, 1.0, 0.0]) + sum(m(x)[0].softmax(0) for m in members) / 3) / 4
    assert torch.allclose(votes.softmax(1)[0], shares, atol=1e-5)
    assert Ensemble([SURE, UNSURE], "majority")(x).argmax(1).tolist() == [1, 1], "a tie goes to the likelier class"


def networks(n: int = 3) -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).eval() for _ in range(n)]


def points(n: int = 60) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 8, generator=torch.Generator().manual_seed(1))
    return x, (x[:, :3]).argmax(1)


def test_weights_are_the_likeliest() -> None:
    ensemble, (x, y) = Ensemble(networks(), "weighted"), points()
    with torch.no_grad():
        probabilities = torch.stack([member(x).softmax(1) for member in ensemble.members]).double()
    own = probabilities.gather(2, y.expand(3, -1)[:, :, None])[:, :, 0].numpy()
    weights = fit_weights(ensemble, [*x.split(20)], y)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)

    def loss(w: object) -> float:
        return float(-torch.as_tensor(w @ own).log().mean())  # pyright: ignore

    result = minimize(
        loss,
        [1 / 3] * 3,
        bounds=[(1e-9, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    assert loss(weights.double().numpy()) <= result.fun + 1e-6
    assert loss(weights.double().numpy()) < loss([1 / 3] * 3) - 1e-5


def test_a_good_member_gets_the_weight() -> None:
    class Knows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 20 * x[:, :3]

    ensemble, (x, y) = Ensemble([Says(0.0, 0.0, 3.0), Knows(), SURE], "weighted"), points()
    assert float(fit_weights(ensemble, [x], y)[1]) > 0.8


@pytest.mark.parametrize("combination", ["logits", "weighted", "majority"])
def test_the_whole_is_attacked(combination: str) -> None:
    """The attack on the ensemble breaks more of it than the attack on its first member alone does."""
    ensemble = Ensemble(networks(5), combination)  # pyright: ignore[reportArgumentType]
    ensemble.eval()
    x, _ = points()
    with torch.no_grad():
        y = ensemble(x).argmax(1)
    threat = Threat("linf", 0.25)
    whole = evaluate(PGD(steps=30), ensemble, x, y, threat)
    single = PGD(steps=30, early_stop=False)(ensemble.members[0], x, y, threat)
    with torch.no_grad():
        transferred = (ensemble(single).argmax(1) == y).float().mean()
    assert whole.robust_accuracy < float(transferred) - 0.1
    assert whole.backwards > 0


def test_state_holds_members_and_weights() -> None:
    ensemble = Ensemble(networks(2), "weighted")
    assert "weights" in ensemble.state_dict()
    assert "members.1.0.weight" in ensemble.state_dict()


def test_nonsense_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="two members"):
        Ensemble([SURE])
    ensemble, (x, y) = Ensemble(networks(), "weighted"), points()
    with pytest.raises(UnsupportedError, match="labels"):
        fit_weights(ensemble, [x], y[:-1])
    with pytest.raises(UnsupportedError, match="labels"):
        fit_weights(ensemble, [], y)
