"""One step of DP-SGD by every method, on the same network, batch and optimiser."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from auditorch.audit.demo.model import build as demo_cnn
from auditorch.privacy.config import DPConfig
from auditorch.privacy.layers import private_structure
from auditorch.privacy.private_run import PrivateRun, Task, train_mode
from models import resnet18, small_cnn
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleExpandedWeights
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Step = Callable[[], None]
BOUND, NOISE, LR = 1.0, 1.0, 0.1


class Transformer(nn.Module):
    """Encoder layers on tokens, their attention built from Linear layers, which every method can train."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, width)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class EncoderBlock(nn.Module):
    """Pre-norm attention and a feed-forward part of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


@dataclass(frozen=True, slots=True)
class Network:
    """Something to train: how it is built and what it reads."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]


def pictures(b: int) -> Tensor:
    return torch.rand(b, 1, 28, 28)


def residual() -> nn.Module:
    """ResNet-18 a quarter as wide, with group norm, for 32 x 32: 700,000 parameters."""
    return private_structure(resnet18(3, width=16))[0]


def tokens(length: int) -> Callable[[int], Tensor]:
    return lambda b: torch.randint(1000, (b, length))


NETWORKS = {
    "cnn": Network(small_cnn, pictures),
    "demo": Network(demo_cnn, pictures),
    "resnet": Network(residual, lambda b: torch.rand(b, 3, 32, 32)),
    "transformer": Network(Transformer, tokens(32)),
    "encoder": Network(lambda: Transformer(128, 4, 4), tokens(64)),
    "minilm": Network(lambda: Transformer(384, 12, 6), tokens(64)),
}
"""The last has the layers of MiniLM, though not its vocabulary."""


class Fixed(PrivateRun):
    """Our steps on one fixed batch instead of a Poisson sample, so that every method has the same work."""

    def draw(self) -> Tensor:
        return torch.arange(len(self.task.y))


def steps(network: nn.Module, x: Tensor, y: Tensor, methods: list[str]) -> dict[str, Step]:
    """A step by each of :data:`METHODS` that is named; ``plain`` always comes first."""
    return {name: METHODS[name](copy.deepcopy(network), x, y) for name in METHODS if name in ["plain", *methods]}


def plain(module: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Forward, backward, sgd."""
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    everything = torch.arange(len(y))

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(module(x[everything]), y[everything]).backward()
        optimizer.step()

    return step


def ours(module: nn.Module, x: Tensor, y: Tensor) -> Step:
    """The step as ``dp_fine_tune`` takes it, with its counting and its random streams."""
    private, _ = private_structure(module)
    config = DPConfig(noise_multiplier=NOISE, batch_size=len(y), max_grad_norm=BOUND, lr=LR)
    run = Fixed(
        private, Task(x, y, lambda logits, y: cross_entropy(logits, y, reduction="none")), config, NOISE, 1.0, 1
    )
    run.__enter__()
    run._probe()
    train_mode(private)
    return run.step


def two_backwards(module: nn.Module, x: Tensor, y: Tensor) -> Step:
    """The floor of every method that goes back twice: one forward pass, two backward passes, no clipping at all."""
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        loss = cross_entropy(module(x), y)
        loss.backward(retain_graph=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def opacus(wrap: Callable[..., Any], module: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Step:
    """As ``PrivacyEngine.make_private`` sets it up, on a given batch."""
    hooked = wrap(module, loss_reduction="mean", **options)
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=LR),
        noise_multiplier=NOISE,
        max_grad_norm=BOUND,
        expected_batch_size=len(y),
    )

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(hooked(x), y).backward()
        optimizer.step()

    return step


def opacus_ghost(module: nn.Module, x: Tensor, y: Tensor) -> Step:
    """``grad_sample_mode="ghost"``: norms in one backward pass, the clipped sum in a second."""
    hooked = GradSampleModuleFastGradientClipping(module, max_grad_norm=BOUND, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(module.parameters(), lr=LR),
        noise_multiplier=NOISE,
        max_grad_norm=BOUND,
        expected_batch_size=len(y),
    )
    criterion = DPLossFastGradientClipping(hooked, optimizer, nn.CrossEntropyLoss(), "mean")

    def step() -> None:
        optimizer.zero_grad()
        criterion(hooked(x), y).backward()
        optimizer.step()

    return step


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "plain": plain,
    "auditorch": ours,
    "two backwards": two_backwards,
    "opacus hooks": lambda *a: opacus(GradSampleModule, *a),
    "opacus functorch": lambda *a: opacus(GradSampleModule, *a, force_functorch=True),
    "opacus ew": lambda *a: opacus(GradSampleModuleExpandedWeights, *a),
    "opacus ghost": opacus_ghost,
}
"""``plain`` is the same step without privacy."""


def quiet() -> None:
    """Opacus' hooks warn on the first layer."""
    warnings.simplefilter("ignore")
