"""FreeLB against the closed form of a model that is linear in its embeddings."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.defenses.freelb import FreeLB
from auditorch.defenses.objectives import CrossEntropy, Moment
from torch import Tensor, nn
from torch.nn.functional import softplus


class Bag(nn.Module):
    """Logits ``±`` half the sum over the text's tokens of ``w · embedding``, by the attention mask."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(12, 4)
        self.w = nn.Parameter(torch.randn(4, generator=generator))
        self.embedding.weight.data = torch.randn(12, 4, generator=generator)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.dropout(self.embedding(x[:, 0]))
        s = (vectors @ self.w * x[:, 1]).sum(1)
        return torch.stack([-s, s], 1) / 2


def batch() -> tuple[Tensor, Tensor]:
    """Texts of three, five and one tokens."""
    ids = torch.arange(15).view(3, 5) % 12
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    return torch.stack([ids, mask, torch.zeros_like(ids)], 1), torch.tensor([0, 1, 1])


def moment(seed: int = 0) -> Moment:
    return Moment(0.0, torch.Generator().manual_seed(seed))


def test_the_path_ends_at_the_worst_perturbation_in_the_ball() -> None:
    module, (x, y), eps = Bag(), batch(), 0.7
    path, _ = FreeLB(eps=eps, step_size=0.5, steps=40).path(module, x, y, moment())
    losses = [float(loss.detach()) for loss in path]
    logits = module(x)
    margin = (logits[:, 1] - logits[:, 0]) * (2 * y - 1)
    # The steepest direction is w at each of the text's m tokens, so a length of eps costs eps |w| sqrt(m).
    worst = softplus(-(margin - eps * module.w.norm() * x[:, 1].sum(1).sqrt())).mean()
    assert losses[-1] == pytest.approx(float(worst.detach()), rel=1e-4)
    assert losses[0] < losses[-1]
    assert all(a <= b + 1e-5 for a, b in pairwise(losses))


def test_without_a_perturbation_it_is_cross_entropy() -> None:
    module, (x, y) = Bag(), batch()
    found = FreeLB(eps=0.0, step_size=0.1, steps=3, class_weights=(1.0, 2.0))(module, x, y, moment())
    plain = CrossEntropy(class_weights=(1.0, 2.0))(module, x, y, moment())
    assert torch.allclose(found.loss, plain.loss)
    assert int(found.correct) == int(plain.correct)


def test_weights_learn_from_every_point_and_the_loss_is_their_mean() -> None:
    module, (x, y) = Bag(), batch()
    defense = FreeLB(eps=1.0, step_size=0.3, steps=3)
    losses, _ = defense.path(module, x, y, moment())
    each = [torch.autograd.grad(loss, module.w)[0] for loss in losses]
    assert not torch.allclose(each[0], each[2])
    defense(module, x, y, moment()).loss.backward()
    assert module.w.grad is not None
    assert torch.allclose(module.w.grad, torch.stack(each).mean(0), atol=1e-6)
    assert not module.embedding._forward_hooks


def test_dropout_is_the_same_along_the_path() -> None:
    module, (x, y) = Bag(0.5).train(), batch()
    losses, _ = FreeLB(eps=0.0, step_size=0.1, steps=3).path(module, x, y, moment())
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    one, other = (FreeLB(eps=1.0, step_size=0.1, steps=1, start=1.0).path(module.eval(), x, y, moment(s))[0][0]
                  for s in (0, 1))  # fmt: skip
    assert not torch.equal(one, other), "the start is drawn from the batch's generator"


def test_bad_settings_and_models_without_embeddings_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="at least one step"):
        replace(FreeLB(1.0, 0.1, 1), steps=0)
    with pytest.raises(UnsupportedError, match="no embedding layer"):
        FreeLB(1.0, 0.1, 1)(nn.Linear(2, 2), *batch(), moment())
    assert FreeLB(1.0, 0.1, 2)(Bag(), *batch(), moment()).loss.isfinite()


class Plain(Bag):
    """The same on ids alone ``(n, t)``, without a mask: padding counts like any token."""

    def forward(self, x: Tensor) -> Tensor:
        self.given = self.embedding(x)
        s = (self.given @ self.w).sum(1)
        return torch.stack([-s, s], 1) / 2


def test_padding_is_left_alone() -> None:
    """Of m tokens, those that pad apart, a length of eps costs eps |w| sqrt(m); on all five it would cost more."""
    module, y = Plain(), torch.tensor([0, 1])
    x = torch.tensor([[3, 4, 5, 11, 11], [6, 11, 11, 11, 11]])

    def worst(defense: FreeLB) -> float:
        losses, _ = defense.path(module, x, y, moment())
        return float(losses[-1].detach())

    def expected(lengths: list[float]) -> float:
        logits = module(x)
        margin = (logits[:, 1] - logits[:, 0]) * (2 * y - 1)
        loss = softplus(-(margin - 0.7 * module.w.norm() * torch.tensor(lengths).sqrt())).mean()
        return float(loss.detach())

    long = FreeLB(eps=0.7, step_size=0.5, steps=40)
    assert worst(replace(long, pad=11)) == pytest.approx(expected([3, 1]), rel=1e-4)
    assert worst(long) == pytest.approx(expected([5, 5]), rel=1e-4)
    module.embedding.padding_idx = 11
    assert worst(long) == pytest.approx(expected([3, 1]), rel=1e-4)


def test_the_start_does_not_shrink_with_the_padding() -> None:
    """Uniform numbers in -1..1 have a mean square of a third, whatever a text is padded to."""
    module, y = Plain(), torch.zeros(400, dtype=torch.int64)
    for width in (6, 60):
        x = torch.full((400, width), 11)
        x[:, :3] = 1
        FreeLB(eps=9.0, step_size=0.1, steps=1, start=3.0, pad=11).path(module, x, y, moment())
        delta = (module.given - module.embedding.weight[x]).detach()
        assert not delta[:, 3:].any()
        length = delta.flatten(1).norm(dim=1)
        assert float(length.square().mean()) == pytest.approx(9 / 3, rel=0.05)
        assert float(length.max()) <= 3.001
