"""Accuracy on Fashion-MNIST after private training, by recipe and epsilon."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from auditorch.audit.demo import model as demo
from auditorch.privacy.config import DPConfig
from auditorch.privacy.dp_sgd import dp_fine_tune
from auditorch.privacy.scattering import PATHS, Scattering
from models import DEMO, fashion_mnist
from safetensors.torch import load_file
from scipy.stats import binomtest
from torch import Tensor, nn

DELTA = 1e-5
Data = tuple["Half | Tensor", Tensor]


@dataclass(frozen=True, slots=True)
class Half:
    """Features kept in half precision: all of Fashion-MNIST in half a gigabyte."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.values[index].float()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to a private classifier.

    Attributes:
        features: what the network reads, from images; must not depend on the training data.
        build: the network to train, with public weights or none.
        epochs: by epsilon; the nearest is taken.
        ema: decay of the moving average of the weights that is kept.
    """

    title: str
    features: Callable[[Tensor], Tensor]
    build: Callable[[], nn.Module]
    epochs: dict[float, int]
    batch_size: int
    lr: float
    bound: float
    momentum: float = 0.9
    ema: float = 0.9


@dataclass(frozen=True, slots=True)
class Split:
    """What is trained on and what the accuracy is measured on."""

    train: tuple[Tensor, Tensor]
    other: tuple[Tensor, Tensor]
    name: str


def scattered(x: Tensor) -> Tensor:
    """Scattering features, each image normalised by groups of its own channels (arXiv 2011.11660)."""
    transform, norm = Scattering(28).eval(), nn.GroupNorm(27, PATHS, affine=False)
    with torch.no_grad():
        return torch.cat([norm(transform(part)).half() for part in x.split(250)])


def linear() -> nn.Module:
    """A linear classifier on scattering features, begun at 0."""
    layer = nn.Linear(PATHS * 49, 10)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


def pretrained() -> nn.Module:
    """The demo's network with the weights from MNIST and a fresh head."""
    module = demo.build()
    module.load_state_dict(load_file(DEMO / "pretrained.safetensors"), strict=False)
    torch.manual_seed(0)
    module.get_submodule("head").reset_parameters()  # pyright: ignore[reportCallIssue]
    return module


def smooth() -> nn.Module:
    """The same with SiLU for ReLU (arXiv 1702.03118), and the fresh head at 0: no noise of its own to unlearn."""
    module = pretrained()
    for name in ("relu1", "relu2", "relu3"):
        setattr(module, name, nn.SiLU())
    for parameter in module.get_submodule("head").parameters():
        nn.init.zeros_(parameter)
    return module


def standardised(x: Tensor) -> Tensor:
    """Each image less its own mean, divided by its own deviation: no record shapes another's."""
    deviation, mean = torch.std_mean(x, (1, 2, 3), keepdim=True)
    return (x - mean) / deviation.clamp(min=1e-3)


RECIPES = {
    "scattering": Recipe(
        "scattering features, linear classifier", scattered, linear, {1: 20, 3: 40, 8: 60}, 8192, lr=16.0, bound=0.1
    ),
    "demo": Recipe(
        "the demo's network, pre-trained on MNIST", lambda x: x, pretrained, {1: 10, 3: 15, 8: 20}, 2048, 4.0, 0.5
    ),
    "silu": Recipe(
        "the demo's network with SiLU", standardised, smooth, {1: 12, 3: 20, 8: 40}, 4096, lr=8.0, bound=0.25, ema=0.99
    ),
}


def accuracy_table(
    split: Split, recipes: list[str], epsilons: list[float], scale: float = 1.0, seeds: Sequence[int] = (0,)
) -> None:
    """Trains and prints one row a recipe, epsilon and seed, with the exact 95 % interval of the accuracy."""
    (x, y), (other_x, other_y) = split.train, split.other
    print(f"Fashion-MNIST, {len(x)} training and {len(other_x)} {split.name} images, delta {DELTA:g}\n")
    print(
        f"| recipe | epsilon | noise | steps | seed | {split.name} accuracy | 95 % interval | processor time |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name in recipes:
        recipe = RECIPES[name]
        train, other = Half(recipe.features(x)), Half(recipe.features(other_x))
        for target, seed in product(epsilons, seeds):
            began = time.process_time()
            result = dp_fine_tune(recipe.build(), train, y, config=config(recipe, target, scale, len(x), seed))
            budget = result.budget
            right = correct(result.module, other, other_y)
            interval = binomtest(right, len(other_y)).proportion_ci(method="exact")
            print(
                f"| {recipe.title} | {budget.epsilon:.2f} | {budget.noise_multiplier:.2f} | {budget.steps} | {seed} | "
                f"{right / len(other_y):.2%} | {100 * interval.low:.1f} to {interval.high:.1%} | "
                f"{time.process_time() - began:.0f} s |",
                flush=True,
            )


def config(recipe: Recipe, target: float, scale: float, n: int, seed: int) -> DPConfig:
    """How ``n`` records are trained on, for epsilon ``target`` and a share ``scale`` of the recipe's epochs."""
    batch = min(recipe.batch_size, n // 4)
    epochs = recipe.epochs[min(recipe.epochs, key=lambda known: abs(known - target))]
    return DPConfig(
        epsilon=target,
        delta=DELTA,
        epochs=max(1, round(scale * epochs)),
        batch_size=batch,
        max_grad_norm=recipe.bound,
        lr=recipe.lr * batch / recipe.batch_size,
        momentum=recipe.momentum,
        ema=recipe.ema,
        seed=seed,
    )


def split_data(folder: Path | None, held_out: int = 0, records: int | None = None) -> Split:
    """All training images and the test set; or, for choosing settings, the test set left aside.

    Args:
        held_out: training images, drawn at random, to measure on in place of the test set; 0: none.
        records: train on that many of the rest, drawn at random; None: on all.
    """
    x, y = fashion_mnist("train", folder)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, kept = order[:held_out], order[held_out:][:records].sort().values
    if held_out:
        return Split((x[kept], y[kept]), (x[held], y[held]), "held-out")
    return Split((x[kept], y[kept]), fashion_mnist("test", folder), "test")


@torch.no_grad()
def correct(module: nn.Module, x: Half, y: Tensor) -> int:
    """How many labels it gets right."""
    module.eval()
    return sum(int((module(x[part]).argmax(1) == y[part]).sum()) for part in torch.arange(len(y)).split(2000))
