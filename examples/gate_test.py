"""A gate in pytest: the build fails when the model is not accurate or not robust enough.

A test passes when the whole 95 % interval is on the good side. Run it with ``pytest examples/gate_test.py``.
"""

import pytest
import torch
from auditorch.audit.assertions import assert_accurate, assert_robust
from sklearn.datasets import load_digits
from torch import Tensor, nn

Audited = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def audited() -> Audited:
    """In place of your own: a network trained on handwritten digits, and test images with values 0..1."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1200]), y[:1200]).backward()
        optimizer.step()
    return model.eval(), x[1200:], y[1200:]


def test_digits_are_read(audited: Audited) -> None:
    assert_accurate(*audited, at_least=0.88)


def test_small_changes_of_the_pixels_do_not_matter(audited: Audited) -> None:
    assert_robust(*audited, norm="linf", eps=0.03, at_least=0.75)
