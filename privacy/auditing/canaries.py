"""Canaries whose gradient is all their own: the strongest test that a training's promise can be put to.

A network is given one extra input and one extra row of weights for each canary. To the output they add nothing, but a
canary's gradient is almost wholly in its own row, far longer than any clipping norm. What the training let through of
it, step by step, can then be read from that row. The promise of differential privacy holds for every network and
every set of records, so a bound that is broken here is broken (Dirac canaries: Nasr et al., arXiv 2302.07956; Steinke
et al., arXiv 2305.08846).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError

Shape = tuple[int, ...]


class CanaryNetwork(nn.Module):
    """A network with a probe beside it; takes ``(n, d + m)``: the flat input, then the canary's own coordinate.

    Args:
        module: any classifier.
        shape: of one input as the module takes it.
        dtype: of that input.
        canaries: m, the rows of the probe.
        classes: of the module's output.
    """

    def __init__(self, module: nn.Module, shape: Shape, dtype: torch.dtype, canaries: int, classes: int) -> None:
        super().__init__()
        self.module = module
        self.probe = nn.Linear(canaries, classes, bias=False)
        nn.init.zeros_(self.probe.weight)
        self._shape, self._dtype = shape, dtype

    def forward(self, x: Tensor) -> Tensor:
        split = math.prod(self._shape)
        own = self.probe(x[:, split:])
        # Zero, with the gradient of the probe: however often a canary was seen, it looks as new.
        return self.module(x[:, :split].reshape(-1, *self._shape).to(self._dtype)) + (own - own.detach())


@dataclass(frozen=True, slots=True)
class PlantedInputs:
    """Records with the included canaries after them, as :class:`CanaryNetwork` takes them; rows are made when asked.

    Attributes:
        x: records ``(n, ...)``.
        canary: what stands in a canary's ordinary part, ``(...)``.
        included: numbers ``(c,)`` of the canaries that take part.
        canaries: how many there are in all.
        strength: value of a canary's own coordinate, and about the length of its gradient.
    """

    x: Tensor
    canary: Tensor
    included: Tensor
    canaries: int
    strength: float

    def __len__(self) -> int:
        return len(self.x) + len(self.included)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        ordinary = index < len(self.x)
        rows = torch.zeros(len(index), self.x[0].numel() + self.canaries)
        rows[ordinary, : self.x[0].numel()] = self.x[index[ordinary]].flatten(1).float()
        number = self.included[index[~ordinary] - len(self.x)]
        planted = (~ordinary).nonzero().squeeze(1)
        rows[planted, : self.x[0].numel()] = self.canary.flatten().float()
        rows[planted, self.x[0].numel() + number] = self.strength
        return rows


@dataclass(frozen=True, slots=True)
class PlantedAugment:
    """Random changes of the ordinary part of planted inputs ``(b, d + m)``; the canary's own coordinate stays.

    Args:
        augment: ``augment(x, generator) -> x`` for inputs as the module takes them.
        shape: of one such input.
    """

    augment: Callable[[Tensor, torch.Generator], Tensor]
    shape: Shape

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        split = math.prod(self.shape)
        changed = self.augment(x[:, :split].reshape(-1, *self.shape), generator)
        return torch.cat([changed.flatten(1), x[:, split:]], 1)


@dataclass(frozen=True, slots=True)
class Planted:
    """What is handed to the trainer, and what tells afterwards who was in.

    Attributes:
        module: to be trained; only its probe is read afterwards.
        inputs, y: the training set, canaries included.
        included: bool ``(m,)``, one fair coin per canary.
    """

    module: CanaryNetwork
    inputs: PlantedInputs
    y: Tensor
    included: Tensor

    @torch.no_grad()
    def scores(self, trained: nn.Module) -> Tensor:
        """How far each canary's row ``(m,)`` moved the way its gradient points.

        Raises:
            UnsupportedError: when the trainer gave back something without the probe.
        """
        probe = getattr(trained, "probe", None)
        weight = getattr(probe, "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != self.module.probe.weight.shape:
            raise UnsupportedError("the trained module has lost its probe: the trainer must return it as it was given")
        label = int(self.y[-1])
        device = next(trained.parameters()).device
        row = self.inputs.canary.flatten().float()
        row = torch.cat([row, torch.zeros(self.inputs.canaries)])[None].to(device)
        was_training = trained.training
        trained.eval()
        direction = trained(row).softmax(1)[0].neg()
        trained.train(was_training)
        direction[label] += 1
        return (direction / direction.norm().clamp_min(1e-12) @ weight).cpu()


def coins(canaries: int, seed: int) -> Tensor:
    """Bool ``(m,)``: a fair coin for each canary, at least one of them in."""
    included = torch.rand(canaries, generator=torch.Generator().manual_seed(seed)) < 0.5
    if not included.any():
        included[0] = True
    return included


def plant(
    module: nn.Module, x: Tensor, y: Tensor, classes: int, canaries: int, seed: int, strength: float = 1000.0
) -> Planted:
    """Puts ``canaries`` canaries beside the records, each included on its own coin.

    A canary's ordinary part is a record whose label is wrong, the same for all, so that only its own row tells it
    apart. Its gradient is at least ``strength / 2`` long however training goes, unless the network learns that label.

    Args:
        x: records ``(n, ...)`` as the module takes them.
        y: labels int64 ``(n,)``.

    Raises:
        UnsupportedError: for fewer than 2 canaries, classes or records.
    """
    if canaries < 2 or classes < 2 or len(x) < 2:
        raise UnsupportedError(f"{canaries} canaries, {classes} classes, {len(x)} records: at least 2 of each")
    included = coins(canaries, seed)
    network = CanaryNetwork(copy.deepcopy(module), tuple(x.shape[1:]), x.dtype, canaries, classes)
    network.to(next((parameter.device for parameter in module.parameters()), torch.device("cpu")))
    numbers = included.nonzero().squeeze(1)
    wrong = (int(y[0]) + 1) % classes
    labels = torch.cat([y, torch.full((len(numbers),), wrong, dtype=torch.int64)])
    inputs = PlantedInputs(x, x[0].detach().clone(), numbers, canaries, strength)
    return Planted(network, inputs, labels, included)
