"""Losses against their definitions, written out by hand."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks import losses
from auditorch.attacks.errors import UnsupportedError
from torch.nn import functional

LOGITS = torch.tensor([[4.0, 1.0, -2.0, 0.5], [0.0, 3.0, 2.5, 7.0]])
Y = torch.tensor([0, 2])


def test_values() -> None:
    torch.testing.assert_close(losses.margin(LOGITS, Y), torch.tensor([1.0 - 4, 7 - 2.5]))
    torch.testing.assert_close(losses.dlr(LOGITS, Y), torch.tensor([-3 / (4 - 0.5), 4.5 / (7 - 2.5)]))
    torch.testing.assert_close(
        losses.targeted_dlr(LOGITS, Y, torch.tensor([3, 1])),
        torch.tensor([-3.5 / (4 - (0.5 - 2) / 2), 0.5 / (7 - (2.5 + 0) / 2)]),
    )
    torch.testing.assert_close(losses.targeted_margin(LOGITS, Y, torch.tensor([3, 1])), torch.tensor([-3.5, 0.5]))
    torch.testing.assert_close(losses.carlini_wagner(LOGITS, Y, 0.5), torch.tensor([3.5, 0.0]))
    expected = -functional.log_softmax(LOGITS, 1)[torch.arange(2), Y]
    torch.testing.assert_close(losses.cross_entropy(LOGITS, Y), expected)


def test_margin_is_positive_exactly_where_the_model_errs() -> None:
    logits = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 2
    assert torch.equal(losses.margin(logits, y) > 0, logits.argmax(1) != y)


def test_dlr_ignores_scale_and_shift() -> None:
    torch.testing.assert_close(losses.dlr(100 * LOGITS + 7, Y), losses.dlr(LOGITS, Y))


@pytest.mark.parametrize("name", ["ce", "margin", "dlr"])
def test_objectives_grow_towards_their_goal(name: losses.LossName) -> None:
    towards = torch.tensor([[3.0, 2.0, -2.0, 0.5], [0.0, 3.0, 2.0, 7.0]])
    untargeted = losses.objective(name, targeted=False)
    assert untargeted(towards, Y)[0] > untargeted(LOGITS, Y)[0]
    targeted = losses.objective(name, targeted=True)
    target = torch.tensor([1, 1])
    assert targeted(towards, target)[0] > targeted(LOGITS, target)[0]


def test_too_few_classes_suggest_the_margin() -> None:
    with pytest.raises(UnsupportedError, match=r"at least 3 classes.*'margin'"):
        losses.dlr(LOGITS[:, :2], torch.tensor([0, 1]))
    with pytest.raises(UnsupportedError, match=r"at least 4 classes.*'margin'"):
        losses.targeted_dlr(LOGITS[:, :3], Y, torch.tensor([1, 1]))
    with pytest.raises(UnsupportedError, match="ce, margin, dlr"):
        losses.objective("cw", targeted=False)  # pyright: ignore[reportArgumentType]
