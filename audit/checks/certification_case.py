"""What a certification works on, and the two ways of certifying it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...attacks.streams import Streams
from ...attacks.threat import Norm, Threat
from ..samples import Samples
from ..target import Target
from .base import Claim, Context, encoded
from .certification_measures import Measured
from .outputs import spaced


@dataclass(frozen=True, slots=True)
class Case:
    """Samples ``x`` ``(n, ...)`` with labels ``y`` and ids ``(n,)``, the radii (ascending) and the one attacked at."""

    target: Target
    samples: Samples
    x: Tensor
    y: Tensor
    ids: Tensor
    norm: Norm
    eps: float
    radii: tuple[float, ...]

    @classmethod
    def of(
        cls, target: Target, samples: Samples, limit: int | None, norm: Norm, eps: float, radii: Sequence[float]
    ) -> Case:
        """At most ``limit`` samples, evenly spaced."""
        samples = spaced(samples, limit)
        x, y = encoded(target, samples)
        return cls(target, samples, x, y, torch.from_numpy(samples.ids), norm, eps, tuple(radii))

    def __len__(self) -> int:
        return len(self.y)

    def threat(self, eps: float) -> Threat:
        return Threat(self.norm, eps, bounds=self.target.bounds)

    def streams(self, seed: int) -> Streams:
        return Streams.from_seed(seed, self.ids)


class Certifier(Protocol):
    """One way of certifying."""

    @property
    def title(self) -> str: ...

    @property
    def caveats(self) -> tuple[str, ...]: ...

    def examine(self, case: Case, context: Context) -> dict[str, Tensor]:
        """Certifies and attacks; what ``verify`` needs, ``ids`` and ``labels`` among it."""
        ...

    def measured(self, case: Case, evidence: Mapping[str, Tensor]) -> Measured:
        """What follows from the evidence alone."""
        ...

    def claims(self, case: Case, evidence: Mapping[str, Tensor], context: Context) -> Iterator[Claim]:
        """Re-checks the evidence on the model."""
        ...


def some_rows(n: int, most: int) -> Tensor:
    """At most ``most`` evenly spaced positions of ``n``."""
    count = min(n, most)
    return torch.arange(count) * n // max(count, 1)


def in_ball(case: Case, x_adv: Tensor, rows: Tensor) -> Claim:
    inside = int(case.threat(case.eps).contains(x_adv, case.x[rows]).sum())
    return Claim("adversarial inputs lie in ball and bounds", inside == len(rows), f"{inside} of {len(rows)}")
