"""Bounds must hold every output that the ball can produce, and be exact where the answer is known."""

from typing import Any

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import Norm, Threat
from auditorch.defenses.certificates.certify import METHODS, Method, certified, margin_bounds, output_bounds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


class Residual(nn.Module):
    """Two convolutions around a sum, flattened by hand, as networks in the wild are written."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 3)
        self.register_buffer("mean", torch.full((2, 1, 1), 0.4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 0.3
        x = functional.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x)) - 0.1 * x
        return self.head(x.mean((2, 3)).view(x.size(0), -1))


class Functional(nn.Module):
    """A network written with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.leaky_relu(self.body(2 * x - 1), 0.2), 2)
        return torch.tanh(self.head(torch.flatten(1 - x, 1))) / 2


def dense(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 3))


NETWORKS: dict[str, Any] = {
    "relu": dense,
    "leaky": lambda: dense(nn.LeakyReLU),
    "tanh": lambda: dense(nn.Tanh),
    "softplus": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(32, 9), nn.Softplus(), nn.Linear(9, 7), nn.ELU(), nn.Linear(7, 3), nn.ReLU6()
    ),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(6, 6, 3, padding="same", groups=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 3),
    ),
    "max_pool": lambda: nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(20, 3)
    ),
    "residual": Residual,
    "functional": lambda: Functional(),
}


def network(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = NETWORKS[name]().double()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 0.3, 2)
                nn.init.normal_(layer.weight)
        return module.eval()


def points(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_ball(x: Tensor, threat: Threat, draws: int, seed: int) -> Tensor:
    """``(draws, n, ...)``: points of the ball, half of them on its edge, some in its corners."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, *x.shape, generator=generator, dtype=x.dtype)
    if threat.norm == "linf":
        noise[draws // 2 :] = noise[draws // 2 :].sign() * 10
    if threat.norm == "l1":
        noise[draws // 2 :] *= torch.rand(noise[draws // 2 :].shape, generator=generator) < 0.1
    sizes = threat.distance(noise.flatten(0, 1), torch.zeros_like(noise).flatten(0, 1)).view(draws, -1).clamp_min(1e-12)
    reach = torch.rand(sizes.shape, generator=generator, dtype=x.dtype)
    reach[::2] = 1
    noise = noise / sizes.view(draws, -1, 1, 1, 1) * (reach * threat.eps).view(draws, -1, 1, 1, 1)
    return (x + noise).clamp(*threat.bounds)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    eps=st.floats(0.0, 1.5),
    norm=st.sampled_from(NORMS),
    method=st.sampled_from(METHODS),
)
def test_every_sampled_output_lies_within_the_bounds(
    name: str, seed: int, eps: float, norm: Norm, method: Method
) -> None:
    module, x, threat = network(name, seed), points(2, seed), Threat(norm, eps)
    lower, upper = output_bounds(module, x, threat, method)
    y = torch.tensor([0, 2])
    margins = margin_bounds(module, x, y, threat, method)
    with torch.no_grad():
        logits = module(in_ball(x, threat, 200, seed).flatten(0, 1)).view(200, 2, 3)
    assert (logits >= lower - 1e-9).all()
    assert (logits <= upper + 1e-9).all()
    others = torch.stack([logits[:, 0, [1, 2]], logits[:, 1, [0, 1]]], 1)
    own = torch.stack([logits[:, 0, 0], logits[:, 1, 2]], 1)[:, :, None]
    assert (own - others >= margins - 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_backward_bounds_are_at_least_as_tight_and_mostly_tighter(name: str, norm: Norm) -> None:
    module, x = network(name), points(2)
    threat = Threat(norm, {"linf": 0.05, "l2": 0.2, "l1": 0.5}[norm])
    widths = []
    for method in METHODS:
        box = output_bounds(module, x, threat, method)
        widths.append(box.upper - box.lower)
    assert (widths[1] <= widths[0]).all()
    assert (widths[2] <= widths[1] + 1e-12).all()
    assert float(widths[2].sum()) < 0.8 * float(widths[0].sum())
    ibp, crown = (margin_bounds(module, x, torch.tensor([0, 2]), threat, method) for method in ("ibp", "crown"))
    assert (crown >= ibp - 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_bounded_exactly(norm: Norm) -> None:
    """Inside the bounds the worst margin is the margin less eps times the dual norm."""
    torch.manual_seed(0)
    layer = nn.Linear(10, 3).double().requires_grad_(False)
    x = torch.full((2, 10), 0.5, dtype=torch.float64)
    y, eps = torch.tensor([0, 1]), 0.3
    found = margin_bounds(layer, x, y, Threat(norm, eps), "crown")
    others = [[1, 2], [0, 2]]
    dual = {"linf": 1, "l2": 2, "l1": float("inf")}[norm]
    for row in range(2):
        for column, other in enumerate(others[row]):
            w = layer.weight[y[row]] - layer.weight[other]
            b = layer.bias[y[row]] - layer.bias[other]
            exact = w @ x[row] + b - eps * torch.linalg.vector_norm(w, dual)
            assert float(found[row, column]) == pytest.approx(float(exact), abs=1e-12)
    exact_linf = margin_bounds(layer, x, y, Threat("linf", eps), "ibp")
    assert torch.allclose(exact_linf, margin_bounds(layer, x, y, Threat("linf", eps), "crown"), atol=1e-12)


def test_the_bounds_of_the_inputs_count() -> None:
    """A pixel at 0 cannot be darkened: only the possible half of the change is charged."""
    layer = nn.Linear(1, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.0]]))
        layer.bias.zero_()
    box = output_bounds(layer, torch.zeros(1, 1, dtype=torch.float64), Threat("linf", 0.2), "crown")
    assert box.lower[0].tolist() == [0, 0]
    assert box.upper[0].tolist() == pytest.approx([0.2, 0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
def test_no_attack_breaks_what_is_certified(norm: Norm, method: Method) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    x = points(60).float()
    with torch.no_grad():
        y = module(x).argmax(1)
    proven_anywhere = 0
    for eps in ({"linf": (0.01, 0.03), "l2": (0.04, 0.12), "l1": (0.01, 0.3)})[norm]:
        proven = certified(module, x, y, Threat(norm, eps), method)
        broken = evaluate(PGD(steps=30, restarts=2), module, x, y, Threat(norm, eps)).success
        assert not (proven & broken).any()
        proven_anywhere += int(proven.sum())
        assert not certified(module, x, (y + 1) % 3, Threat(norm, eps), method).any(), "a wrong class was proven"
    assert proven_anywhere > 5


def test_dtype_flags_and_mode_are_left_alone() -> None:
    module, x = network("conv"), points(3)
    module.train()
    certified(module, x, torch.tensor([0, 1, 2]), Threat("linf", 0.01), batch_size=2)
    assert all(layer.training for layer in module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] if x.sum() > 0 else x.flatten(1)[:, 3:6]


class Across(nn.Module):
    """Things that look harmless and mix samples, or are random."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        match self.what:
            case "mean":
                return x.flatten(1).mean(-2)
            case "view":
                return x.view(-1, 16)
            case _:
                return functional.dropout(x.flatten(1))


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :3] if False else x.flatten(1)
        return x * x


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.GELU()), "GELU"),
        (nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.LayerNorm(3)), "LayerNorm"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()), "ceil_mode"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(32, 3)), "Flatten"),
        (nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.ELU(alpha=-1.0)), "ELU"),
        (Across("mean"), "mean over the batch"),
        (Across("view"), "reshaping across samples"),
        (Across("dropout"), "dropout"),
        (Branching(), "cannot be traced"),
        (Product(), "product of two results"),
    ],
)
def test_what_cannot_be_bounded_is_named_with_a_way_out(module: nn.Module, names: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"(?s){names}.*smoothing"):
        output_bounds(module.double().eval(), points(1), Threat("linf", 0.1))


def test_a_layer_with_hooks_is_refused() -> None:
    module = network("relu")
    module.get_submodule("1").register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="Linear with hooks"):
        output_bounds(module, points(1), Threat("linf", 0.1))


def test_norms_and_methods_are_checked() -> None:
    with pytest.raises(UnsupportedError, match="not l0"):
        output_bounds(network("relu"), points(1), Threat("l0", 1))
    with pytest.raises(UnsupportedError, match="choose one of ibp"):
        output_bounds(network("relu"), points(1), Threat("linf", 1), "deepz")  # pyright: ignore[reportArgumentType]
