from dataclasses import replace

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import Threat
from auditorch.defenses.adversarial_training import AdversarialLoss, fast, training_pgd
from auditorch.defenses.objectives import CrossEntropy, Moment
from auditorch.defenses.training import TrainingConfig, fit
from torch import Tensor, nn


class Recorder(nn.Module):
    """A linear model that remembers the inputs of passes in train mode, and whether it was ever asked otherwise."""

    def __init__(self, d: int = 6, k: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(d, k)
        self.seen: list[Tensor] = []
        self.attacked_in_eval_mode = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        else:
            self.attacked_in_eval_mode = True
        return self.layer(x)


def moment(progress: float = 0.5, seed: int = 0) -> Moment:
    return Moment(progress, torch.Generator().manual_seed(seed))


def batch(n: int = 32, d: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 0.2 + 0.6 * torch.rand(n, d, generator=generator), torch.randint(3, (n,), generator=generator)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_trains_on_inputs_inside_the_ball_that_are_harder(norm: str) -> None:
    x, y = batch()
    threat = Threat(norm, {"linf": 0.1, "l2": 0.2, "l1": 0.4}[norm])  # pyright: ignore
    module = Recorder().train()
    result = AdversarialLoss(threat, training_pgd(5))(module, x, y, moment())
    assert module.training
    assert module.attacked_in_eval_mode
    assert len(module.seen) == 1
    x_adv = module.seen[0]
    assert (threat.distance(x_adv, x) <= threat.eps * 1.001).all()
    assert (threat.distance(x_adv, x) > threat.eps * 0.5).float().mean() > 0.9
    clean = CrossEntropy()(module, x, y, moment()).loss
    assert result.loss > clean + 0.01
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_linf_attack_of_a_linear_model_reaches_the_closed_form_loss() -> None:
    """With two classes the worst case of a linear model is eps times the l1 norm of the weight difference."""
    x, y = batch()
    y = y.clamp_max(1)
    module = Recorder(k=2).train()
    threat = Threat("linf", 0.05)
    loss = AdversarialLoss(threat, training_pgd(10))(module, x, y, moment()).loss
    difference = module.layer.weight[1] - module.layer.weight[0]
    worst = x + 0.05 * torch.where(y == 0, 1.0, -1.0)[:, None] * difference.sign()
    torch.testing.assert_close(loss, CrossEntropy()(module, worst, y, moment()).loss, rtol=1e-4, atol=1e-5)


def test_eps_grows_over_the_warm_up() -> None:
    x, y = batch()
    threat = Threat("linf", 0.1)
    sizes = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        module = Recorder().train()
        AdversarialLoss(threat, training_pgd(3), warmup=0.5)(module, x, y, moment(progress))
        sizes.append(float(threat.distance(module.seen[0], x).max()))
    assert sizes == pytest.approx([0.0, 0.05, 0.1, 0.1], abs=1e-6)


def test_fast_takes_one_step_of_five_quarters_eps() -> None:
    threat = Threat("linf", 0.1)
    assert fast(threat) == PGD(steps=1, step_size=0.125, early_stop=False)


def test_adversarial_training_buys_robustness() -> None:
    """Two features: one that is perfect but small, one that is noisy but large. Only the second survives eps."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (400,), generator=generator)
    sign = (2 * y - 1).float()
    large = 0.5 + 0.3 * torch.where(torch.rand(400, generator=generator) < 0.9, sign, -sign)
    x = torch.stack([0.5 + 0.02 * sign, large], dim=1)
    threat = Threat("linf", 0.1)
    robust = {}
    for name, objective in (("plain", CrossEntropy()), ("adversarial", AdversarialLoss(threat, training_pgd(5), 0.2))):
        module = nn.Linear(2, 2)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[-40.0, -2.0], [40.0, 2.0]]))
            module.bias.copy_(torch.tensor([21.0, -21.0]))
        fit(module, x, y, config=TrainingConfig(epochs=12, lr=1.0, optimizer="adam"), objective=objective)
        x_adv = PGD(steps=20)(module, x, y, threat)
        robust[name] = float((module(x_adv).argmax(1) == y).float().mean())
    assert robust["plain"] < 0.2
    assert robust["adversarial"] > 0.85


def test_bad_arguments() -> None:
    threat = Threat("linf", 0.1)
    with pytest.raises(UnsupportedError, match="untargeted"):
        AdversarialLoss(replace(threat, targeted=True), training_pgd())
    with pytest.raises(UnsupportedError, match="warmup is 2"):
        AdversarialLoss(threat, training_pgd(), warmup=2)
    with pytest.raises(UnsupportedError, match="l0"):
        AdversarialLoss(Threat("l0", 3), training_pgd())
