"""A student of the model, trained on what the model says: the surrogate of one who may only ask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attack import Model
from .errors import UnsupportedError
from .models import attacking, check_logits


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What :func:`extract_surrogate` gives.

    Attributes:
        module: the student, in eval mode.
        queries: model evaluations spent.
        agreement: share of the attacker's inputs, without their variations, on which student and model agree.
    """

    module: nn.Module
    queries: int
    agreement: float


def extract_surrogate(
    model: Model,
    x: Tensor,
    *,
    queries: int = 5000,
    labels_only: bool = False,
    student: nn.Module | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float = 2e-3,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Surrogate:
    """Trains a student to say what the model says (arXiv 1602.02697, 1812.02766).

    The attacker's inputs are asked about first. Queries that remain go to variations of them: blends of two inputs
    (arXiv 1710.09412) and, for images, shifts and mirror images, all with a little noise.

    Args:
        model: logits ``(n, k)`` of inputs; asked without gradients.
        x: the attacker's inputs ``(n, ...)`` within the bounds, no labels needed.
        queries: most model evaluations; inputs beyond are left out.
        labels_only: learn from predicted classes rather than from probabilities.
        student: trained in place; None: a small network for images or vectors.
        steps: of Adam, with a learning rate that rises to ``lr`` and falls; None: twenty passes, at least 200.
        generator: on the CPU; None: seed 0.

    Raises:
        UnsupportedError: for no inputs, fewer than 10 queries, or a student whose output does not fit.
    """
    if len(x) == 0 or queries < 10 or (steps is not None and steps < 1):
        raise UnsupportedError("extraction needs inputs, queries >= 10 and steps >= 1")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    asked = x[torch.randperm(len(x), generator=generator)[:queries].to(x.device)]
    own = len(asked)
    if queries > own:
        asked = torch.cat([asked, _variations(asked, queries - own, bounds, generator)])
    with attacking(model), torch.no_grad():
        said = torch.cat([check_logits(model(part), len(part)).float() for part in asked.split(batch_size)])
    wanted = functional.one_hot(said.argmax(1), said.shape[1]).float() if labels_only else said.softmax(1)
    module = _student(x, said.shape[1], generator) if student is None else student
    steps = max(20 * len(asked) // batch_size, 200) if steps is None else steps
    _fit(module.to(x.device), asked, wanted, steps, batch_size, lr, generator)
    with torch.no_grad():
        again = torch.cat([module(part) for part in asked[:own].split(batch_size)])
    return Surrogate(module, len(asked), float((again.argmax(1) == said[:own].argmax(1)).double().mean()))


def _fit(
    module: nn.Module, x: Tensor, wanted: Tensor, steps: int, batch_size: int, lr: float, generator: torch.Generator
) -> None:
    with torch.enable_grad():
        optimizer = torch.optim.Adam(module.parameters(), lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        module.train()
        for _ in range(steps):
            rows = torch.randint(len(x), (min(batch_size, len(x)),), generator=generator).to(x.device)
            logits = module(x[rows])
            if logits.shape != wanted[rows].shape:
                raise UnsupportedError(
                    f"the student gives {tuple(logits.shape)} where the model gives {tuple(wanted[rows].shape)}"
                )
            optimizer.zero_grad()
            functional.cross_entropy(logits, wanted[rows]).backward()
            optimizer.step()
            schedule.step()
    module.eval()


def _variations(x: Tensor, count: int, bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    """``(count, ...)``: blends, shifts and mirror images of ``x``, with noise of a fiftieth of the range."""
    first, second = (torch.randint(len(x), (count,), generator=generator).to(x.device) for _ in range(2))
    share = torch.rand(count, generator=generator).to(x).view(-1, *[1] * (x.dim() - 1))
    new = share * x[first] + (1 - share) * x[second]
    if x.dim() == 4:
        alone = torch.arange(count, device=x.device) % 2 == 0
        new[alone] = _moved(x[first][alone], generator)
    noise = torch.randn(new.shape, generator=generator).to(x) * (bounds[1] - bounds[0]) / 50
    return (new + noise).clamp(*bounds)


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to an eighth, every other one mirrored; edges repeated."""
    n, _, h, w = x.shape
    flip = (torch.rand(n, generator=generator) < 0.5).to(x.device).view(-1, 1, 1, 1)
    shift = (torch.rand(n, 2, generator=generator).to(x) - 0.5) / 2
    theta = torch.eye(2, 3, dtype=x.dtype, device=x.device).repeat(n, 1, 1)
    theta[:, :, 2] = shift
    grid = functional.affine_grid(theta, [n, 1, h, w], align_corners=False)
    moved = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return torch.where(flip, moved.flip(3), moved)


def _student(x: Tensor, k: int, generator: torch.Generator) -> nn.Module:
    """A network of three convolutions for images of 8 pixels and more, otherwise of two hidden layers."""
    shape = x.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        if len(shape) == 3 and min(shape[1:]) >= 8:
            h, w = (math.ceil(side / 4) for side in shape[1:])
            return nn.Sequential(
                nn.Conv2d(shape[0], 32, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, 64, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d((min(h, 7), min(w, 7))),
                nn.Flatten(),
                nn.Linear(64 * min(h, 7) * min(w, 7), 128),
                nn.ReLU(),
                nn.Linear(128, k),
            )
        d = math.prod(shape)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(d, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, k)
        )
