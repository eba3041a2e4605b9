"""What the probes look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models import CountingModel, check_logits
from ..streams import Streams
from ..threat import Threat


@dataclass(frozen=True, slots=True)
class Subject:
    """Samples that the model classifies correctly, and the model, which counts its passes.

    Attributes:
        x: ``(m, ...)`` on the model's device.
        y: int64 ``(m,)``.
        logits: float32 ``(m, k)`` on ``x``.
        streams: of the samples.
    """

    model: CountingModel
    x: Tensor
    y: Tensor
    logits: Tensor
    threat: Threat
    streams: Streams
    seed: int
    batch_size: int

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(
        cls, model: CountingModel, x: Tensor, y: Tensor, threat: Threat, streams: Streams, *, seed: int, batch_size: int
    ) -> Subject:
        """The subject, its logits computed in the batches in which everything else will be."""
        blank = cls(model, x, y, x.new_empty(0), threat, streams, seed, batch_size)
        return replace(blank, logits=blank.forward(x)) if len(x) else blank

    @property
    def span(self) -> float:
        """Width of the input range."""
        low, high = self.threat.bounds
        return high - low

    @property
    def step(self) -> float:
        """How far eps lets every feature move at once, in input units."""
        d = self.x[0].numel()
        match self.threat.norm:
            case "linf":
                return self.threat.eps
            case "l2":
                return self.threat.eps / d**0.5
            case "l1":
                return self.threat.eps / d
            case "l0":
                return self.threat.eps / d * self.span

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Float32 logits ``(m, k)``."""
        return torch.cat([check_logits(self.model(part), len(part)) for part in x.split(self.batch_size)]).float()

    def gradient(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """Gradient ``(m, ...)`` of the loss at ``x``, as the model gives it; None where it gives none."""
        parts: list[Tensor] = []
        for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                logits = self.model(leaf)
                if not logits.requires_grad:
                    return None
                (gradient,) = torch.autograd.grad(loss(logits, y).sum(), leaf, allow_unused=True)
            if gradient is None:
                return None
            parts.append(gradient)
        return torch.cat(parts)

    def moved(self, delta: Tensor) -> Tensor:
        """``x + delta`` within the bounds."""
        low, high = self.threat.bounds
        return (self.x + delta).clamp(low, high)
