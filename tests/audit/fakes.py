"""A toy world with known answers: images whose class is the bright quadrant, models that read it, a context on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from auditorch.audit.checks.base import ModelFiles, Progress
from auditorch.audit.samples import Samples
from auditorch.audit.target import Target
from auditorch.reports.record import Evidence
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")


def toy_patterns(k: int = 4) -> NDArray[np.float32]:
    """``(k, 8, 8)``: one in the quadrant of the class, zero elsewhere."""
    patterns = np.zeros((4, 8, 8), dtype=np.float32)
    for c in range(4):
        row, column = divmod(c, 2)
        patterns[c, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
    return patterns[:k]


def toy_samples(
    n: int = 80,
    k: int = 4,
    seed: int = 0,
    contrast: float = 0.15,
    noise: float = 0.05,
    start: int = 0,
    spread: float = 0.0,
) -> Samples:
    """uint8 images ``(n, 8, 8)``, classes in turn, pixels far enough from 0 and 255 that small steps stay in bounds.

    The mean of a quadrant is 0.4, that of the class's own quadrant ``contrast`` higher, give or take ``spread``.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % k
    grain = noise * rng.standard_normal((n, 8, 8))
    lift = contrast + spread * rng.uniform(-1, 1, (n, 1, 1))
    clean = 0.4 + lift * toy_patterns()[labels] + grain
    images = np.clip(np.round(clean * 255), 0, 255).astype(np.uint8)
    return samples_of(images, labels, QUADRANTS[:k], start)


def samples_of(images: NDArray[Any], labels: NDArray[np.int64], classes: tuple[str, ...], start: int = 0) -> Samples:
    """Samples around arrays, ids and names counted from ``start``."""
    return Samples(
        inputs=images,
        labels=labels,
        ids=np.arange(start, start + len(labels), dtype=np.int64),
        names=[f"image-{i}" for i in range(start, start + len(labels))],
        classes=classes,
        source="toy",
        sha256=hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
    )


def encode(raw: NDArray[np.uint8]) -> Tensor:
    """uint8 ``(b, 8, 8)`` to float32 ``(b, 1, 8, 8)`` in 0..1."""
    return torch.from_numpy(raw.astype(np.float32) / 255).unsqueeze(1)


def linear_model(k: int = 4, scale: float = 20.0) -> nn.Sequential:
    """Logit c is ``scale`` times the mean of quadrant c: optimal for the toy images, every optimum in closed form."""
    layer = nn.Linear(64, k)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(toy_patterns(k)).flatten(1) * scale / 16)
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer).eval()


def linf_optimum(samples: Samples, scale: float = 20.0) -> Tensor:
    """Smallest linf perturbation ``(n,)`` that makes :func:`linear_model` err, bounds aside; 0 where it errs anyway."""
    k = len(samples.classes)
    logits = linear_model(k, scale)(encode(samples.inputs[np.arange(len(samples))]))
    y = torch.from_numpy(samples.labels)
    own = logits.gather(1, y[:, None])
    rivals = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    # The weights of two classes do not overlap: the l1 norm of their difference is 2 * scale.
    return ((own[:, 0] - rivals) / (2 * scale)).clamp_min(0).detach()


def small_cnn(k: int = 4, seed: int = 0) -> nn.Sequential:
    """An untrained convolutional network for the toy images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, k))
        return nn.Sequential(*layers).eval()


def toy_target(module: nn.Module | None = None, k: int = 4) -> Target:
    """A target with every kind of access around ``module`` (the linear model when left out)."""
    module = linear_model(k) if module is None else module
    return Target(
        module=module,
        encode=encode,
        classes=QUADRANTS[:k],
        modality="image",
        bounds=(0.0, 1.0),
        device=torch.device("cpu"),
        sha256="0" * 64,
    )


@dataclass
class FakeProgress:
    """Remembers what was reported."""

    started: list[tuple[str, float]] = field(default_factory=list)
    done: float = 0.0

    def start(self, label: str, total: float) -> None:
        self.started.append((label, total))

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount


@dataclass
class FakeContext:
    """A context whose evidence lies under ``root`` and whose further data are in ``sources``."""

    root: Path
    check: str = "check"
    seed: int = 0
    batch_size: int | None = None
    variant: str = "base"
    sources: Mapping[str, Samples] = field(default_factory=dict)
    progress: Progress = field(default_factory=FakeProgress)
    models: ModelFiles = field(default_factory=ModelFiles)

    def evidence(self, kind: str, tensors: Mapping[str, Tensor], name: str = "") -> Evidence:
        stem = f"{self.check}-{name}" if name else self.check
        path = f"evidence/{self.variant}/{stem}.safetensors"
        data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)
        return Evidence(path=path, sha256=hashlib.sha256(data).hexdigest(), kind=kind)

    def read_evidence(self, evidence: Evidence) -> dict[str, Tensor]:
        data = (self.root / evidence.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != evidence.sha256:
            raise AssertionError(f"{evidence.path} was changed")
        return load(data)

    def samples(self, source: str) -> Samples:
        return self.sources[source]

    def path(self, source: str) -> Path:
        return self.root / source

    def model_files(self) -> ModelFiles:
        return self.models

    def scratch(self, name: str) -> Path:
        return self.root / "scratch" / name
