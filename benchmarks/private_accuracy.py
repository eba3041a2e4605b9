"""Accuracy on Fashion-MNIST after private training, by recipe and epsilon."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from auditorch.audit.demo import model as demo
from auditorch.privacy.config import DPConfig
from auditorch.privacy.dp_sgd import dp_fine_tune
from auditorch.privacy.scattering import PATHS, Scattering
from models import DEMO, fashion_mnist
from safetensors.torch import load_file
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
    """

    title: str
    features: Callable[[Tensor], Tensor]
    build: Callable[[], nn.Module]
    epochs: dict[float, int]
    batch_size: int
    lr: float
    bound: float
    momentum: float


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


def tempered() -> nn.Module:
    """The same with tanh, whose bounded values keep gradients short (arXiv 2007.14191)."""
    module = pretrained()
    for name in ("relu1", "relu2", "relu3"):
        setattr(module, name, nn.Tanh())
    return module


RECIPES = {
    "scattering": Recipe(
        "scattering features, linear classifier", scattered, linear, {1: 20, 3: 40, 8: 60}, 8192, 16.0, 0.1, 0.9
    ),
    "demo": Recipe(
        "the demo's network, pre-trained on MNIST", lambda x: x, pretrained, {1: 10, 3: 15, 8: 20}, 2048, 4.0, 0.5, 0.9
    ),
    "tanh": Recipe("the demo's network with tanh", lambda x: x, tempered, {1: 12, 3: 20, 8: 25}, 4096, 4.0, 0.5, 0.9),
}


def accuracy_table(
    folder: Path | None, recipes: list[str], epsilons: list[float], scale: float, records: int | None = None
) -> None:
    """Trains and prints one row a recipe and epsilon; the settings were not chosen on the test set."""
    x, y = fashion_mnist("train", folder)
    test_x, test_y = fashion_mnist("test", folder)
    if records is not None:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:records]
        x, y = x[rows], y[rows]
    print(f"Fashion-MNIST, {len(x)} training and {len(test_x)} test images, delta {DELTA:g}\n")
    print(
        "| recipe | epsilon | noise | steps | test accuracy | processor time |\n|---|---|---|---|---|---|", flush=True
    )
    for name in recipes:
        recipe = RECIPES[name]
        train, test = Half(recipe.features(x)), Half(recipe.features(test_x))
        for target in epsilons:
            began = time.process_time()
            batch = min(recipe.batch_size, len(x) // 4)
            epochs = recipe.epochs[min(recipe.epochs, key=lambda known: abs(known - target))]
            config = DPConfig(
                epsilon=target,
                delta=DELTA,
                epochs=max(1, round(scale * epochs)),
                batch_size=batch,
                max_grad_norm=recipe.bound,
                lr=recipe.lr * batch / recipe.batch_size,
                momentum=recipe.momentum,
                ema=0.9,
            )
            result = dp_fine_tune(recipe.build(), train, y, config=config)
            budget = result.budget
            print(
                f"| {recipe.title} | {budget.epsilon:.2f} | {budget.noise_multiplier:.2f} | {budget.steps} | "
                f"{accuracy(result.module, test, test_y):.2%} | {time.process_time() - began:.0f} s |",
                flush=True,
            )


@torch.no_grad()
def accuracy(module: nn.Module, x: Half, y: Tensor) -> float:
    module.eval()
    right = [module(x[part]).argmax(1) == y[part] for part in torch.arange(len(y)).split(2000)]
    return float(torch.cat(right).double().mean())
