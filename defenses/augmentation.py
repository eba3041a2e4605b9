"""Training on randomly altered inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .objectives import BatchLoss, Moment, Objective


@dataclass(frozen=True, slots=True)
class RandomFlip:
    """Mirrors each image left to right with probability one half, then applies ``objective``.

    Right for pictures of things; wrong for text, digits and whatever else has a reading direction.
    """

    objective: Objective

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        mirrored = torch.rand(len(x), generator=moment.generator).to(x.device) < 0.5
        return self.objective(module, torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x), y, moment)
