"""Targets: raw input in, logits out."""

import pickle

import numpy as np
import torch
from auditorch.audit.loading.encode import ImageEncode, TableEncode
from auditorch.audit.loading.normalized import Normalized
from auditorch.audit.target import Target
from torch import nn


def target(module: nn.Module) -> Target:
    return Target(module, ImageEncode(), ("a", "b"), "image", (0.0, 1.0), torch.device("cpu"), "1")


def test_logits_are_those_of_the_encoded_input_without_gradients() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    module = nn.Sequential(Cast(), module).eval()
    raw = np.array([[[0, 255], [51, 102]]], dtype=np.uint8)
    logits = target(module).logits(raw)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    expected = module(torch.tensor([[[[0, 1], [0.2, 0.4]]]])).float()
    assert torch.allclose(logits, expected)


class Cast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def test_a_variant_keeps_preprocessing_and_classes() -> None:
    base = target(nn.Flatten())
    other = base.with_module(nn.Identity(), "2")
    assert (other.sha256, other.classes, other.encode) == ("2", base.classes, base.encode)
    assert isinstance(base.module, nn.Flatten)


def test_encoders_travel_to_worker_processes() -> None:
    for encode in (ImageEncode("hwc", (2, 2)), TableEncode()):
        assert pickle.loads(pickle.dumps(encode)) == encode


def test_normalisation_is_no_weight_and_trains_through() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    module = Normalized(body, (0.5, 0.25), (0.5, 2.0))
    assert set(module.state_dict()) == {"body.1.weight", "body.1.bias"}
    x = torch.rand(3, 2, 2, 2)
    by_hand = torch.stack([(x[:, 0] - 0.5) / 0.5, (x[:, 1] - 0.25) / 2.0], 1)
    assert torch.allclose(module(x), body(by_hand))
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert [name for name, _ in module.named_parameters()] == ["body.1.weight", "body.1.bias"]
