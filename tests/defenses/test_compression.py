"""Compression against second implementations: what is removed is the smallest, and what is left is what it says."""

import copy
from typing import Any

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.search import input_gradient
from auditorch.defenses.compression.channel_pruning import prune_channels
from auditorch.defenses.compression.head_pruning import prune_heads
from auditorch.defenses.compression.low_rank import factorize, rank_for
from auditorch.defenses.compression.pruning import prune_weights, sparsity, zeros_kept
from auditorch.defenses.compression.quantization import (
    Mode,
    Quantized,
    calibrate,
    integer_arithmetic,
    quantize,
)
from auditorch.defenses.training import TrainingConfig, fit
from torch import Tensor, nn
from torch.nn import functional


def seeded(make: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def network() -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 9, 10),
            nn.ReLU(),
            nn.Linear(10, 3),
        ).eval()
    )


def images(n: int = 16) -> Tensor:
    return torch.rand(n, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def answers(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# Single weights


def test_the_smallest_weights_of_all_layers_go() -> None:
    module, before = network(), network()
    masks = prune_weights(module, 0.6)
    weights = [layer.weight.detach() for layer in before if isinstance(layer, nn.Conv2d | nn.Linear)]
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    limit = sizes.kthvalue(round(0.6 * len(sizes))).values
    for weight, layer in zip(weights, [one for one in module if isinstance(one, nn.Conv2d | nn.Linear)], strict=True):
        assert torch.equal(layer.weight, torch.where(weight.abs() > limit, weight, 0.0))
    assert sparsity(module) == pytest.approx(0.6, abs=1e-3)
    assert sparsity(before) == 0
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.6 * len(sizes))
    assert torch.equal(module.get_parameter("1.weight"), before.get_parameter("1.weight"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_keeps_the_zeros_and_moves_the_rest(optimizer: Any) -> None:
    module = network()
    masks = prune_weights(module, 0.5)
    before = copy.deepcopy(module.state_dict())
    config = TrainingConfig(epochs=2, batch_size=8, optimizer=optimizer, lr=0.01, weight_decay=0.1)
    with zeros_kept(module, masks):
        fit(module, images(), torch.arange(16) % 3, config=config)
    for name, mask in masks.items():
        weight = module.get_parameter(f"{name}.weight")
        assert (weight[~mask] == 0).all()
        assert not torch.equal(weight[mask], before[f"{name}.weight"][mask])
    fit(module, images(), torch.arange(16) % 3, config=config)
    assert sparsity(module) < 0.4, "without the hooks zeros grow again"


# Channels


def test_channels_really_go_and_the_rest_computes_the_same() -> None:
    module, base, x = network(), network(), images()
    changed = prune_channels(module, 0.5)
    assert changed == {"0": (8, 4), "3": (6, 3), "6": (10, 5)}
    shapes = [tuple(layer.weight.shape) for layer in module if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert shapes == [(4, 2, 3, 3), (3, 4, 3, 3), (5, 27), (3, 5)]
    # The same network at full size with the weakest channels put to zero after each layer.
    masked = x
    for layer in base:
        masked = answers(layer, masked)
        if isinstance(layer, nn.ReLU):
            masked = masked * _strongest(base, layer, masked)
    assert torch.allclose(answers(module, x), masked, atol=1e-5)


def _strongest(base: nn.Sequential, relu: nn.Module, x: Tensor) -> Tensor:
    """A mask over the channels that ``relu`` passes: the half whose layer has the largest l1 norms."""
    layers = list(base)
    at = layers.index(relu)
    layer = next(one for one in reversed(layers[:at]) if isinstance(one, nn.Conv2d | nn.Linear))
    sizes = layer.weight.detach().abs().flatten(1).sum(1)
    mask = (sizes >= sizes.sort(descending=True).values[len(sizes) // 2 - 1]).float()
    return mask.view(-1, *[1] * (x.dim() - 2))


class Joined(nn.Module):
    """A sum ties ``a`` and ``b`` together; only ``inner`` and ``c`` can be narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner, self.b = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
        self.c, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = functional.relu(x + self.b(torch.relu(self.inner(x))))
        return self.head(functional.adaptive_avg_pool2d(self.c(x), 1).view(x.size(0), -1))


def test_channels_tied_by_a_sum_stay() -> None:
    module = seeded(Joined).eval()
    assert prune_channels(module, 0.5) == {"inner": (8, 4), "c": (4, 2)}
    assert answers(module, images()).shape == (16, 3)


def test_a_network_without_free_channels_says_so() -> None:
    with pytest.raises(UnsupportedError, match="structure: weights"):
        prune_channels(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 0.5)

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match="cannot be traced"):
        prune_channels(Branches(), 0.5)


# Heads


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Named(nn.Module):
    """An attention layer written as Hugging Face does."""

    def __init__(self, heads: int = 4, shared: int | None = None) -> None:
        super().__init__()
        self.num_attention_heads = heads
        if shared:
            self.num_key_value_heads = shared
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (4, 3)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_the_weakest_heads_are_silenced_and_the_others_untouched() -> None:
    module, x = seeded(Named).eval(), torch.rand(2, 5, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        module.value.weight[3:6] *= 0.01
        module.value.weight[9:12] *= 0.1
    before = answers(module, x)
    assert prune_heads(module, 0.5) == {"": (1, 3)}
    after = answers(module, x)
    assert (after[:, :, 3:6] == 0).all()
    assert (after[:, :, 9:12] == 0).all()
    assert torch.equal(after[:, :, :3], before[:, :, :3])
    assert torch.equal(after[:, :, 6:9], before[:, :, 6:9])


def test_heads_of_torch_by_what_they_pass_on() -> None:
    module, x = seeded(Encoder).eval(), torch.rand(2, 5, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        module.attention.out_proj.weight[:, 6:9] *= 1e-4  # head 2 may have large values, but none arrive
    before = answers(module, x)
    assert prune_heads(module, 0.25) == {"attention": (2,)}
    assert torch.allclose(answers(module, x), before, atol=1e-3)
    assert not torch.equal(answers(module, x), before)
    assert prune_heads(module, 0.99) == {"attention": tuple(h for h in range(4) if h != _left(module))}


def _left(module: nn.Module) -> int:
    weight = module.get_parameter("attention.out_proj.weight")
    return next(h for h in range(4) if (weight[:, 3 * h : 3 * h + 3] != 0).any())


def test_models_without_heads_of_their_own_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no attention layer"):
        prune_heads(network(), 0.5)
    with pytest.raises(UnsupportedError, match="cannot be told apart"):
        prune_heads(Named(shared=2), 0.5)


# Low rank


def test_a_layer_of_low_rank_is_kept_exactly_and_the_error_is_the_best_possible() -> None:
    layer = nn.Linear(20, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(16, 3) @ torch.randn(3, 20))
    module = nn.Sequential(copy.deepcopy(layer), nn.Linear(16, 4)).eval()
    base = copy.deepcopy(module)
    keep = 0.36
    assert rank_for(layer.weight.shape, keep) == 3
    assert factorize(module, keep) == 2
    first = module[0]
    assert isinstance(first, nn.Sequential)
    assert [tuple(first.get_parameter(f"{i}.weight").shape) for i in (0, 1)] == [(3, 20), (16, 3)]
    x = torch.randn(5, 20)
    assert torch.allclose(answers(first, x), answers(base[0], x), atol=1e-4)
    weight = base.get_parameter("1.weight").detach()
    rank = rank_for(weight.shape, keep)
    product = module.get_parameter("1.1.weight") @ module.get_parameter("1.0.weight")
    best = torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()
    assert float((product - weight).detach().norm()) == pytest.approx(float(best), rel=1e-4)


def test_a_factorised_convolution_is_that_of_the_nearest_filters() -> None:
    layer = seeded(lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=1)).eval()
    module = nn.Sequential(copy.deepcopy(layer))
    factorize(module, 0.7)
    assert sum(p.numel() for p in module.parameters()) < 0.75 * sum(p.numel() for p in layer.parameters())
    rank = rank_for(layer.weight.flatten(1).shape, 0.7)
    u, s, v = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
    with torch.no_grad():
        layer.weight.copy_((u[:, :rank] * s[:rank] @ v[:rank]).view_as(layer.weight))
    x = torch.rand(2, 3, 9, 9)
    assert torch.allclose(answers(module, x), answers(layer, x), atol=1e-5)


def test_what_cannot_get_smaller_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="raise `keep`"):
        factorize(nn.Sequential(nn.Linear(2, 2)), 0.3)
    with pytest.raises(UnsupportedError, match="single Linear"):
        factorize(nn.Linear(20, 20), 0.5)
    with pytest.raises(UnsupportedError, match="below 1"):
        factorize(network(), 1.0)


# Quantisation


def quantized(mode: Mode, module: nn.Module | None = None) -> nn.Module:
    module = network() if module is None else module
    quantize(module, mode)
    if mode == "static":
        calibrate(module, images(64).split(16))
    return module


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_quantised_networks_answer_nearly_the_same_in_a_quarter_of_the_bytes(mode: Mode) -> None:
    base, module = network(), quantized(mode)
    assert sum(isinstance(layer, Quantized) for layer in module.modules()) == 4
    error = relative(answers(module, images()), answers(base, images()))
    assert 1e-4 < error < 0.03
    weights = [layer.weight for layer in module.modules() if isinstance(layer, Quantized)]
    assert {weight.dtype for weight in weights} == {torch.int8}


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_integers_and_floats_compute_the_same(mode: Mode) -> None:
    grouped = lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)  # noqa: E731
    body = seeded(lambda: nn.Sequential(grouped(), nn.Flatten(), nn.Linear(64, 5)).eval())
    module, x = quantized(mode, body), images() - 0.3
    simulated = answers(module, x)
    with integer_arithmetic(module):
        assert torch.allclose(answers(module, x), simulated, atol=1e-5)
    for layer in network(), seeded(Joined).eval():
        module = quantized(mode, layer)
        simulated = answers(module, images())
        with integer_arithmetic(module):
            deployed = answers(module, images())
        assert torch.equal(deployed.argmax(1), simulated.argmax(1))
        assert relative(deployed, simulated) < 0.01


def test_a_quantised_layer_is_integers_times_scales() -> None:
    """By hand: weights on 127 levels by channel, inputs on the grid between their least and greatest value."""
    layer = seeded(lambda: nn.Linear(6, 3))
    module = Quantized(layer, "dynamic")
    x = torch.tensor([[0.0, 0.25, 1.0, -1.0, 0.5, 1.54]])
    step = 2.54 / 254
    scale = layer.weight.detach().abs().amax(1) / 127
    weights = (layer.weight.detach() / scale[:, None]).round()
    expected = (x / step).round() * step @ (weights * scale[:, None]).T + layer.bias.detach()
    assert torch.allclose(answers(module, x), expected, atol=1e-6)


def test_dynamic_answers_do_not_depend_on_the_neighbours() -> None:
    module, x = quantized("dynamic"), images()
    x[0] *= 0.01
    assert torch.allclose(answers(module, x)[:1], answers(module, x[:1]), atol=1e-6)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_the_gradient_passes_straight_through(mode: Mode) -> None:
    base, x = network(), images()
    module = quantized(mode)
    of_base, of_module = (
        input_gradient(one, x, lambda logits: logits[:, 0] - logits[:, 1])[2].flatten(1) for one in (base, module)
    )
    cosine = functional.cosine_similarity(of_base, of_module)
    assert float(cosine.min()) > 0.9


def test_static_ranges_are_those_of_the_calibration_and_cut_off_what_lies_beyond() -> None:
    layer = seeded(lambda: nn.Sequential(nn.Linear(1, 1, bias=False)))
    with torch.no_grad():
        layer[0].weight.fill_(1.0)
    quantize(layer, "static")
    calibrate(layer, [torch.tensor([[0.5], [2.0]])])
    inner = layer[0]
    assert (float(inner.low), float(inner.high)) == (0.0, 2.0)
    assert float(answers(layer, torch.tensor([[5.0]]))) == pytest.approx(2.0, rel=0.01)
    with pytest.raises(UnsupportedError, match="at least one batch"):
        calibrate(layer, [])


def test_a_quantised_network_moves_and_casts_like_any_other() -> None:
    module, x = quantized("static"), images()
    double = copy.deepcopy(module).double().to("cpu")
    assert torch.allclose(answers(double, x.double()).float(), answers(module, x), atol=0.02)
    assert double[0].weight.dtype == torch.int8  # pyright: ignore[reportIndexIssue]


def test_state_survives_saving() -> None:
    module = quantized("static")
    again = network()
    quantize(again, "static")
    again.load_state_dict(module.state_dict())
    assert torch.equal(answers(again, images()), answers(module, images()))
