"""Models whose smallest adversarial perturbation is known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from auditorch.attacks.threat import Norm
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LinearProblem:
    """A linear classifier, inputs that it classifies correctly, and how far each is from the nearest wrong class.

    Attributes:
        model: flattens and applies one linear layer.
        x, y: inputs ``(n, *shape)`` in 0..1 and their predicted classes.
    """

    model: nn.Sequential
    x: Tensor
    y: Tensor

    def distance(self, norm: Norm) -> Tensor:
        """Smallest perturbation ``(n,)`` inside 0..1 that reaches the boundary of any other class; float64."""
        return self.distance_to_each(norm).amin(1)

    def nearest(self, norm: Norm) -> Tensor:
        """The class ``(n,)`` whose boundary that is."""
        return self.distance_to_each(norm).argmin(1)

    def distance_to_each(self, norm: Norm) -> Tensor:
        """Smallest perturbation ``(n, k)`` inside 0..1 that lifts each class level with ``y``; infinity for ``y``."""
        linear = self.model[1]
        assert isinstance(linear, nn.Linear)
        weight, x = linear.weight.detach().double(), self.x.flatten(1).double()
        logits = x @ weight.T + linear.bias.detach().double()
        distance = torch.full_like(logits, float("inf"))
        for i in range(len(x)):
            for j in range(len(weight)):
                if j != self.y[i]:
                    normal = weight[j] - weight[self.y[i]]
                    room = torch.where(normal > 0, 1 - x[i], x[i])
                    distance[i, j] = smallest(normal.abs(), room, float(logits[i, self.y[i]] - logits[i, j]), norm)
        return distance


def smallest(gain: Tensor, room: Tensor, gap: float, norm: Norm) -> float:
    """Smallest norm of a vector 0 <= d <= room with ``gain @ d >= gap``; infinity when there is none."""
    if float(gain @ room) < gap:
        return float("inf")
    if norm in ("l1", "l0"):
        order = (gain if norm == "l1" else gain * room).argsort(descending=True)
        gain, room = gain[order], room[order]
        reached = (gain * room).cumsum(0)
        full = int((reached < gap).sum())  # features used up before the one that closes the gap
        if norm == "l0":
            return full + 1.0
        missing = gap - (float(reached[full - 1]) if full else 0.0)
        return float(room[:full].sum()) + missing / float(gain[full])
    low, high = 0.0, 1.0
    shape = torch.ones_like(gain) if norm == "linf" else gain
    step = lambda scale: torch.minimum(scale * shape, room)  # noqa: E731
    while float(gain @ step(high)) < gap and high < 1e12:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(gain @ step(middle)) < gap else (low, middle)
    d = step(high)
    return float(d.abs().max() if norm == "linf" else d.norm())


def linear_problem(
    n: int = 8,
    shape: tuple[int, ...] = (1, 6, 6),
    classes: int = 4,
    *,
    decoys: int = 0,
    seed: int = 0,
    reach: float = 0.08,
) -> LinearProblem:
    """A random problem in which each input leads by about ``reach`` in linf, against some classes up to twice that.

    Inputs stay off the bounds by .02, but room is short enough for the bounds to matter in l2, l1 and l0. ``decoys``
    more classes have logits far below all others everywhere, for losses that need more classes.
    """
    generator = torch.Generator().manual_seed(seed)
    d = math.prod(shape)
    weight = torch.randn(classes, d, generator=generator) * (0.3 + torch.rand(d, generator=generator))
    x = 0.1 + 0.8 * torch.rand(n, d, generator=generator)
    y = torch.arange(n) % classes
    for i in range(n):
        factor = 1 + (torch.arange(classes) + i) % classes / classes
        x[i] = _lead(x[i], weight[y[i]] - weight, reach * factor)
    model = nn.Sequential(nn.Flatten(), nn.Linear(d, classes + decoys))
    parameters = {
        "1.weight": torch.cat([weight, weight.mean(0).expand(decoys, d)]),
        "1.bias": torch.tensor([0.0] * classes + [-1000.0] * decoys),
    }
    model.load_state_dict(parameters)
    return LinearProblem(model, x.view(n, *shape), y)


def _lead(x: Tensor, normals: Tensor, reach: Tensor) -> Tensor:
    """``x`` moved until ``normals @ x`` is at least ``reach`` times each normal's l1 norm."""
    wanted = reach * normals.abs().sum(1)
    for _ in range(300):
        short = wanted - normals @ x
        worst = int(short.argmax())
        if short[worst] <= 1e-6:
            break
        normal = normals[worst]
        x = (x + 1.01 * short[worst] * normal / normal.square().sum()).clamp(0.02, 0.98)
    return x
