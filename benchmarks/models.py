"""Data and networks to attack: Fashion-MNIST, small networks trained in a minute or two, and a WRN-28-10."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import Threat
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

DEMO = Path(__file__).resolve().parent.parent / "audit" / "demo"


def fashion_mnist(part: str, folder: Path | None = None) -> tuple[Tensor, Tensor]:
    """Images float32 ``(n, 1, 28, 28)`` in 0..1 and labels of ``train`` or ``test``.

    Args:
        part: ``train`` or ``test``.
        folder: holds the original gzipped idx files; None: the subset that comes with the demo.
    """
    if folder is None:
        arrays = np.load(DEMO / f"{part}.npz")
        x, y = arrays["x"], arrays["y"]
    else:
        prefix = "train" if part == "train" else "t10k"
        with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as stream:
            x = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as stream:
            y = np.frombuffer(stream.read(), np.uint8, offset=8).astype(np.int64)
    return torch.from_numpy(x.copy()).float().div(255)[:, None], torch.from_numpy(y.copy())


def small_cnn(channels: int = 1, side: int = 28, classes: int = 10) -> nn.Sequential:
    """Three convolutions and two linear layers: 430,000 parameters and 2.3 million products a pass for 28 x 28."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (side // 4) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def slim_cnn(width: int = 12) -> nn.Sequential:
    """Three strided convolutions and two linear layers: 63,000 parameters, five times as fast as ``small_cnn``."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * width, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (arXiv 1512.03385)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def resnet18(channels: int = 1, classes: int = 10, width: int = 64) -> nn.Sequential:
    """ResNet-18 for small images: 11.2 M parameters at width 64."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inside = width
    for stage, outside in enumerate((width, 2 * width, 4 * width, 8 * width)):
        for block in range(2):
            layers.append(Block(inside, outside, 2 if stage > 0 and block == 0 else 1))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


def resnet8(channels: int = 1, classes: int = 10, width: int = 8) -> nn.Sequential:
    """A residual network with batch norm that a CPU can attack a million times: 20,000 parameters at width 8."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


class WideBlock(nn.Module):
    """The pre-activation block of wide residual networks (arXiv 1605.07146)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x))
        base = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return base + self.conv2(functional.relu(self.norm2(self.conv1(active))))


def wide_resnet(depth: int = 28, widen: int = 10, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """WRN-28-10 for 32 x 32 images: 36.5 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
    inside = 16
    for stage, outside in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for block in range((depth - 4) // 6):
            layers.append(WideBlock(inside, outside, 2 if stage > 0 and block == 0 else 1))
            inside = outside
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inside, classes),
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to attack.

    Attributes:
        build: makes it.
        threat: what it is trained against; None: plain training.
        coloured: whether it takes 3 x 32 x 32 inputs instead of 1 x 28 x 28.
    """

    build: Callable[[], nn.Module]
    threat: Threat | None = None
    coloured: bool = False


SUBJECTS: dict[str, Subject] = {
    "cnn": Subject(small_cnn, Threat("linf", 0.1)),
    "cnn-standard": Subject(small_cnn),
    "slim": Subject(slim_cnn, Threat("linf", 0.1)),
    "slim-l2": Subject(slim_cnn, Threat("l2", 1.5)),
    "slim-l1": Subject(slim_cnn, Threat("l1", 12.0)),
    "slim-standard": Subject(slim_cnn),
    "resnet8": Subject(resnet8, Threat("linf", 0.1)),
    "resnet8-l2": Subject(resnet8, Threat("l2", 1.5)),
    "resnet8-standard": Subject(resnet8),
    "resnet18": Subject(resnet18, Threat("linf", 0.1)),
    "wrn-28-10": Subject(wide_resnet, Threat("linf", 8 / 255), coloured=True),
}


def trained(
    name: str, *, epochs: int = 4, device: str = "cpu", idx: Path | None = None, cache: Path | None = None
) -> nn.Module:
    """The subject ``name`` in eval mode, trained now or taken from ``cache``."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    model = subject.build().to(device)
    kept = cache and cache / f"{name}-{epochs}.safetensors"
    if kept and kept.exists():
        model.load_state_dict(load_file(kept, device=device))
        return model.eval()
    began = time.monotonic()
    x, y = samples(name, "train", idx)
    train(model, x, y, epochs=epochs, threat=subject.threat)
    print(f"trained {name} in {time.monotonic() - began:.0f} s", flush=True)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), kept)
    return model


def samples(name: str, part: str, idx: Path | None = None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST in the shape that the subject ``name`` takes."""
    x, y = fashion_mnist(part, idx)
    if SUBJECTS[name].coloured:
        x = functional.pad(x, (2, 2, 2, 2)).repeat(1, 3, 1, 1)
    return x, y


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, threat: Threat | None = None, seed: int = 0) -> None:
    """Trains with Adam, on three-step PGD inputs when a threat is given; leaves the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    attack = PGD(steps=3, early_stop=False)
    total = epochs * -(-len(x) // 128)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=total)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            batch, label = x[rows].to(_device(model)), y[rows].to(_device(model))
            if threat is not None:
                batch = attack(model, batch, label, threat, generator=generator)
            model.train()
            optimizer.zero_grad()
            functional.cross_entropy(model(batch), label).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
