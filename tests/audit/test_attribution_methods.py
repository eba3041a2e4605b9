"""Attribution methods against models whose explanation is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.audit.attribution.baselines import make_baseline
from auditorch.audit.attribution.layers import grad_cam_layer
from auditorch.audit.attribution.methods import METHODS, Method, attribute, control_grid, relevance
from auditorch.defenses.compression.quantization import quantize
from torch import Tensor, nn
from torch.nn import functional

ALL = (*METHODS, "random")
GRADIENT: tuple[Method, ...] = ("integrated_gradients", "input_x_gradient", "gradient_shap", "deep_lift")


def images(n: int = 6, c: int = 2, side: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed))


def linear(c: int = 2, side: int = 8, k: int = 3) -> nn.Sequential:
    layer = nn.Linear(c * side * side, k)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)))
    return nn.Sequential(nn.Flatten(), layer).eval()


def weights_of(model: nn.Sequential, targets: Tensor, like: Tensor) -> Tensor:
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach()[targets].view_as(like)


def convolutional(inplace: bool = False) -> nn.Sequential:
    """Two channels, 8 x 8, three classes; untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace),
            nn.Flatten(),
            nn.Linear(128, 3),
        ).eval()


class Planted(nn.Module):
    """Class 1 when the 2 x 2 patch at rows 4-5, columns 2-3 is bright, class 0 otherwise; nothing else matters."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0, 1, 1] = 1
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., 4:6, 2:4] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        bright = 5 * (functional.relu(self.conv(x)) * self.mask).sum((1, 2, 3))
        return torch.stack([torch.full_like(bright, 8.0), bright], 1)


@pytest.mark.parametrize("baseline", ["zero", "mean", "blur"])
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("method", GRADIENT)
def test_linear_model_is_explained_exactly(method: Method, n: int, baseline: Literal["zero", "mean", "blur"]) -> None:
    model, x = linear(), images(n)
    targets = torch.arange(n) % 3
    maps = attribute(method, model, x, targets, baseline=baseline)
    nothing = torch.zeros_like(x) if method == "input_x_gradient" else make_baseline(x, baseline)
    assert torch.allclose(maps, weights_of(model, targets, x) * (x - nothing), atol=1e-5)


def test_saliency_is_the_absolute_gradient() -> None:
    model, x, targets = linear(), images(), torch.arange(6) % 3
    assert torch.allclose(attribute("saliency", model, x, targets), weights_of(model, targets, x).abs())


def test_occlusion_of_single_pixels_is_the_change_of_the_logit() -> None:
    model, x, targets = linear(), images(), torch.arange(6) % 3
    maps = attribute("occlusion", model, x, targets, window=1)
    assert torch.allclose(relevance(maps), (weights_of(model, targets, x) * x).sum(1), atol=1e-4)


def test_occlusion_averages_overlapping_windows() -> None:
    model = Planted()
    maps = relevance(attribute("occlusion", model, torch.ones(1, 1, 8, 8), torch.tensor([1]), window=4))
    # Windows of 4 moved by 2: the patch lies wholly in windows from rows 2 and 4 and columns 0 and 2.
    assert torch.allclose(maps[0, 4:6, 2:4], torch.full((2, 2), 20.0))
    assert maps[0, 0, 7] == 0


def test_grad_cam_is_the_rectified_weighted_sum_of_the_maps() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    x, targets = images(5), torch.tensor([0, 1, 2, 0, 1])
    # The head reads means over 64 places, so the gradient at each place is its weight / 64.
    expected = functional.relu(torch.einsum("nkhw,nk->nhw", conv(x), head.weight[targets] / 64))
    assert torch.allclose(relevance(attribute("grad_cam", model, x, targets)), expected, atol=1e-6)


def test_grad_cam_is_upsampled_to_the_input() -> None:
    maps = attribute("grad_cam", convolutional(), images(), torch.zeros(6, dtype=torch.int64))
    assert maps.shape == (6, 2, 8, 8)
    assert torch.equal(maps[:, 0], maps[:, 1])
    assert maps.min() >= 0


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_patch_is_found(method: Method) -> None:
    x = 0.2 + 0.6 * images(4, c=1)
    options: dict[str, Any] = {"window": 2} if method == "occlusion" else {}
    maps = relevance(attribute(method, Planted(), x, torch.ones(4, dtype=torch.int64), **options))
    if method == "grad_cam":  # one gradient per channel: it cannot tell places of equal activation apart
        assert (maps > 0).all()
        return
    top = maps.flatten(1).topk(4).indices
    hit = torch.stack([top // 8, top % 8], -1)
    assert ((hit[..., 0] >= 4) & (hit[..., 0] < 6)).all()
    assert ((hit[..., 1] >= 2) & (hit[..., 1] < 4)).all()


@pytest.mark.parametrize("method", ALL)
def test_results_do_not_depend_on_the_batch(method: Method) -> None:
    model, x, targets, ids = convolutional(), images(), torch.arange(6) % 3, torch.arange(10, 16)
    whole = attribute(method, model, x, targets, ids=ids, seed=4)
    part = attribute(method, model, x[[4, 2]], targets[[4, 2]], ids=ids[[4, 2]], seed=4, internal_batch_size=5)
    assert torch.allclose(whole[[4, 2]], part, atol=1e-6)
    assert whole[[4, 2]].abs().flatten(1).amax(1).min() > 1e-5


@pytest.mark.parametrize("method", ALL)
def test_no_samples_give_no_maps(method: Method) -> None:
    maps = attribute(method, convolutional(), images()[:0], torch.zeros(0, dtype=torch.int64))
    assert maps.shape == (0, 2, 8, 8)


@pytest.mark.parametrize("method", METHODS)
def test_in_place_activations_are_explained_like_others(method: Method) -> None:
    x, targets = images(), torch.arange(6) % 3
    plain = attribute(method, convolutional(), x, targets)
    assert torch.equal(attribute(method, convolutional(inplace=True), x, targets), plain)


def state(module: nn.Module) -> list[Any]:
    """Everything of a module that a library might leave changed."""
    found: list[Any] = [(p.requires_grad, p.grad is None) for p in module.parameters()]
    for part in module.modules():
        hooks = [len(v) for k, v in part.__dict__.items() if "hooks" in k and v is not None]
        found.append((part.training, getattr(part, "inplace", None), hooks, sorted(part.__dict__)))
    return found


@pytest.fixture
def global_randomness() -> Iterator[None]:
    """The test must leave the global random states alone."""
    before, before_np = torch.get_rng_state(), str(np.random.get_state())
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == before_np


@pytest.mark.usefixtures("global_randomness")
@pytest.mark.parametrize("method", ALL)
def test_the_model_is_given_back_as_found(method: Method) -> None:
    model = convolutional(inplace=True).train()
    next(model.parameters()).requires_grad_(False)
    before, x = state(model), images()
    original = x.clone()
    attribute(method, model, x, torch.arange(6) % 3)
    assert state(model) == before
    assert torch.equal(x, original)
    assert not x.requires_grad


class Breaks(nn.Module):
    """Fails in the backward or, when no gradient is wanted, in the forward pass, but not while layers are sought."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.requires_grad:
            x.register_hook(self._fail)
        elif self.calls > 1:
            self._fail(x)
        return x

    def _fail(self, _: Tensor) -> None:
        raise ArithmeticError("broken on purpose")


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_given_back_after_a_failure(method: Method) -> None:
    model = convolutional(inplace=True).train()
    model.insert(5, Breaks())
    before = state(model)
    breaks = model[5]
    assert isinstance(breaks, Breaks)
    breaks.calls = 0 if method == "grad_cam" else 1
    with pytest.raises(ArithmeticError):
        attribute(method, model, images(), torch.arange(6) % 3)
    assert state(model) == before


def test_deep_lift_refuses_an_activation_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.head = nn.ReLU(), nn.Linear(128, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.relu(self.relu(x) - 0.5).flatten(1))

    model = Twice().eval()
    before = state(model)
    with pytest.raises(UnsupportedError, match="integrated_gradients"):
        attribute("deep_lift", model, images(), torch.zeros(6, dtype=torch.int64))
    assert state(model) == before


def test_random_depends_on_seed_and_id_only() -> None:
    x, ids = images(), torch.tensor([5, 3, 5, 8, 9, 10])
    targets = torch.zeros(6, dtype=torch.int64)
    maps = attribute("random", linear(), x, targets, ids=ids, seed=1)
    assert torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(maps, attribute("random", linear(), x, targets, ids=ids, seed=2))


def test_the_control_is_as_coarse_as_the_method() -> None:
    model, x = convolutional(), images()
    assert control_grid("saliency", model, x) == (8, 8)
    assert control_grid("grad_cam", model, x) == (4, 4)
    assert control_grid("occlusion", model, x) == (7, 7)
    coarse = attribute("random", model, x, torch.zeros(6, dtype=torch.int64), grid=(2, 2))
    steps = relevance(coarse).diff(dim=1).diff(dim=1).abs()
    assert (steps[:, 2:4] < 1e-5).all()  # linear between the centres of the two cells


class Shortcut(nn.Module):
    """The convolution defined last runs first; the one that runs last gives a single pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(4, 5, 3, padding=1)
        self.pooled = nn.Conv2d(5, 3, 1)
        self.early = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.late(self.early(x))
        return self.pooled(x.mean((2, 3), keepdim=True)).flatten(1)


def test_grad_cam_takes_the_last_convolution_that_runs_and_has_places() -> None:
    assert grad_cam_layer(Shortcut(), images()) == "late"
    assert grad_cam_layer(Shortcut(), images(), "early") == "early"


def test_grad_cam_finds_convolutions_on_integers() -> None:
    module = Shortcut()
    quantize(module, "dynamic")
    assert grad_cam_layer(module, images()) == "late"


def test_grad_cam_without_a_layer_says_so() -> None:
    with pytest.raises(UnsupportedError, match="needs a convolutional layer"):
        grad_cam_layer(linear(), images())
    with pytest.raises(UnsupportedError, match="Did you mean 'early'"):
        grad_cam_layer(Shortcut(), images(), "erly")
    with pytest.raises(UnsupportedError, match=r"maps \(n, c, h, w\)"):
        grad_cam_layer(convolutional(), images(), "6")


def test_unusable_requests_are_refused() -> None:
    zero = torch.zeros(6, dtype=torch.int64)
    wrong: Any = "integrated_gradient"
    with pytest.raises(UnsupportedError, match="unknown attribution method"):
        attribute(wrong, linear(), images(), zero)
    with pytest.raises(UnsupportedError, match="need inputs"):
        attribute("saliency", linear(), images().flatten(1), zero)


def test_baselines() -> None:
    x = images()
    assert torch.equal(make_baseline(x, "zero", (0.25, 1.0)), torch.full_like(x, 0.25))
    assert torch.allclose(make_baseline(x, "mean")[2, 1], x[2, 1].mean().expand(8, 8))
    flat = torch.full((1, 2, 8, 8), 0.3)
    assert torch.allclose(make_baseline(flat, "blur"), flat)
    assert make_baseline(x, "blur").var() < 0.5 * x.var()
