"""Held-out data, and the scores by which a training keeps its best epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..attacks.attack import Attack
from ..attacks.errors import UnsupportedError
from ..attacks.threat import Threat


class Inputs(Protocol):
    """Inputs by position, ``inputs[index] -> (b, ...)``: a tensor, or something that reads from disk."""

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Accuracy:
    """Share of ``x (n, ...)`` classified as ``y (n,)``; with ``attack``, of the inputs it makes of them.

    Robust accuracy is what to stop adversarial training by: it peaks long before clean accuracy does, and falls after
    (robust overfitting, arXiv 2002.11569).
    """

    x: Inputs
    y: Tensor
    attack: Attack | None = None
    threat: Threat | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        if (self.attack is None) != (self.threat is None):
            raise UnsupportedError("robust validation needs both an attack and a threat")

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        device = next(module.parameters()).device
        generator = torch.Generator().manual_seed(0)
        correct = 0
        for rows in torch.arange(len(self.y)).split(self.batch_size):
            x, y = self.x[rows].to(device), self.y[rows].to(device)
            if self.attack is not None and self.threat is not None:
                x = self.attack(module, x, y, self.threat, generator=generator)
            correct += int((module(x).argmax(1) == y).sum())
        return correct / len(self.y)


def hold_out(y: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to train on and to validate on: ``share`` of each class, at least one sample of it, is held out.

    Raises:
        UnsupportedError: when nothing would be left to train on.
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique().tolist():
        rows = (y == label).nonzero().squeeze(1)
        picked = torch.randperm(len(rows), generator=generator)[: max(1, round(share * len(rows)))]
        held[rows[picked]] = True
    if held.all():
        raise UnsupportedError(f"validation {share:g} of {len(y)} samples leaves nothing to train on")
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)
