"""EoT on randomised models, and BPDA through steps without a gradient."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.apgd import APGD
from auditorch.attacks.evasion.bpda import BPDA
from auditorch.attacks.evasion.eot import EOT, Averaged
from auditorch.attacks.evasion.fgsm import FGSM
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.search import input_gradient
from auditorch.attacks.threat import Threat
from torch import Tensor, nn

from .oracles import linear_problem

PROBLEM = linear_problem(8, (1, 6, 6), 2)
THREAT = Threat("linf", 1.2 * float(PROBLEM.distance("linf").max()))


class Noisy(nn.Module):
    """The linear model, whose gradient is drowned in noise of its own generator."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner = PROBLEM.model
        self.scale = scale
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        direction = torch.randn(x[0].numel(), 2, generator=self.generator)
        return self.inner(x) + self.scale * ((x - PROBLEM.x.mean()).flatten(1) @ direction)


def test_averaged_gradient_approaches_the_expectation() -> None:
    loss = lambda logits: logits[:, 1] - logits[:, 0]  # noqa: E731
    _, _, exact = input_gradient(PROBLEM.model, PROBLEM.x, loss)
    errors = [
        float((input_gradient(Averaged(Noisy(1.0), draws), PROBLEM.x, loss)[2] - exact).norm()) for draws in (1, 100)
    ]
    assert errors[1] < errors[0] / 5


def test_eot_counts_every_pass() -> None:
    outcome = evaluate(EOT(FGSM(), draws=7), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    assert outcome.backwards == 7 * 8
    assert outcome.success.all()


@pytest.mark.parametrize("attack", [PGD(steps=10), APGD(steps=10)], ids=["pgd", "apgd"])
def test_eot_finds_what_a_single_draw_misses(attack: PGD | APGD) -> None:
    """Judged on the noiseless model; every claimed point is taken, wherever the noise let it through."""
    wrong = []
    for chosen in (attack, EOT(attack, draws=30)):
        x_adv = chosen(Noisy(1.0), PROBLEM.x, PROBLEM.y, THREAT, generator=torch.Generator().manual_seed(0))
        wrong.append(int((PROBLEM.model(x_adv).argmax(1) != PROBLEM.y).sum()))
    assert wrong[1] >= 7
    assert wrong[0] <= wrong[1] - 2


def quantise(x: Tensor) -> Tensor:
    return (x * 15).round() / 15


def test_bpda_is_exact_forwards_and_lets_the_gradient_through() -> None:
    model = nn.Sequential(BPDA(quantise), PROBLEM.model)
    assert torch.equal(model(PROBLEM.x), PROBLEM.model(quantise(PROBLEM.x)))
    y = model(PROBLEM.x).argmax(1)
    masked = evaluate(PGD(steps=20), lambda x: PROBLEM.model(quantise(x)), PROBLEM.x, y, THREAT)
    through = evaluate(PGD(steps=20), model, PROBLEM.x, y, THREAT)
    assert int(through.success.sum()) >= 7
    assert int(masked.success.sum()) <= 2


def test_bpda_uses_the_approximation_it_is_given() -> None:
    x = torch.tensor([[0.2, 0.7]], requires_grad=True)
    BPDA(torch.sign, lambda t: 3 * t)(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[3.0, 3.0]]))


def test_bpda_needs_equal_shapes() -> None:
    with pytest.raises(UnsupportedError, match="same shape"):
        BPDA(lambda x: x[:, :1])(torch.rand(2, 3))
