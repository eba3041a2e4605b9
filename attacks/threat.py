"""The threat model: which perturbations count."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import UnsupportedError
from .projections import project_l0, project_l1_box, project_l2_box
from .streams import Streams

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = get_args(Norm)


def parse_eps(eps: float | str) -> float:
    """Reads a radius written as a number or a fraction: ``0.03``, ``"8/255"``.

    Raises:
        UnsupportedError: when it is not a finite number >= 0.
    """
    try:
        value = float(Fraction(eps.strip())) if isinstance(eps, str) else float(eps)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedError(f"eps is {eps!r}: write a number or a fraction such as 8/255") from error
    if not 0 <= value < float("inf"):
        raise UnsupportedError(f"eps is {eps!r}: it must be a finite number >= 0")
    return value


@dataclass(frozen=True, slots=True)
class Threat:
    """A norm ball around each input, inside the bounds of the input space.

    Args:
        norm: ``linf``, ``l2``, ``l1`` or ``l0``. ``l0`` counts input features (pixels x channels).
        eps: radius in input units (images: 0..1, so ``8/255`` is eight grey levels); may be a fraction string.
        targeted: when true, ``y`` given to an attack holds the classes to reach instead of those to leave.
        bounds: lowest and highest valid input value.
    """

    norm: Norm
    eps: float
    targeted: bool = False
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UnsupportedError(f"norm is {self.norm!r}: choose one of {', '.join(NORMS)}")
        object.__setattr__(self, "eps", parse_eps(self.eps))
        low, high = self.bounds
        if not low < high:
            raise UnsupportedError(f"bounds are {self.bounds}: the lower one must be below the upper one")

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Size ``(n,)`` of the perturbation of each sample, in this threat's norm."""
        delta = (x_adv - x).flatten(1)
        match self.norm:
            case "linf":
                return delta.abs().amax(1)
            case "l2":
                return delta.norm(2, dim=1)
            case "l1":
                return delta.abs().sum(1)
            case "l0":
                return (delta != 0).sum(1).to(delta.dtype)

    def in_bounds(self, x_adv: Tensor) -> Tensor:
        """Bool ``(n,)``: whether every feature of each sample lies within the bounds, exactly. NaN does not."""
        low, high = self.bounds
        return ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bool ``(n,)``: whether each ``x_adv`` lies in the ball around ``x`` and inside the bounds. NaN does not.

        The bounds hold exactly. The radius may be exceeded by what rounding to the dtype of ``x`` explains: one
        part in a million, plus one unit in the last place of the largest input for each feature changed (l1),
        its root (l2), or once (linf). l0 holds exactly.
        """
        exact = self.distance(x_adv.double(), x.double())
        changed = (x_adv != x).flatten(1).sum(1).double()
        power = {"linf": 0.0, "l2": 0.5, "l1": 1.0, "l0": 0.0}[self.norm]
        ulp = torch.finfo(x.dtype).eps * torch.maximum(x_adv.abs(), x.abs()).flatten(1).amax(1).double()
        slack = torch.zeros_like(exact) if self.norm == "l0" else 1e-6 * self.eps + ulp * changed**power
        return self.in_bounds(x_adv) & (exact <= self.eps + slack)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of the ball around ``x``, inside the bounds, to which ``x_adv`` is moved; shape of ``x``.

        The Euclidean projection onto the intersection of ball and bounds (l1: arXiv 2103.01208); for l2 nearly so
        (see :func:`~auditorch.attacks.projections.project_l2_box`). For l0 the largest changes are kept.
        """
        low, high = self.bounds
        match self.norm:
            case "linf":
                return torch.clamp(torch.clamp(x_adv, x - self.eps, x + self.eps), low, high)
            case "l2":
                return project_l2_box(x_adv, x, self.eps, low, high)
            case "l1":
                return project_l1_box(x_adv, x, self.eps, low, high)
            case "l0":
                return project_l0(x_adv, x, self.eps, low, high)

    def random_start(self, x: Tensor, generator: torch.Generator | Streams | None) -> Tensor:
        """A random point of the ball and bounds: uniform for linf, uniform in the ball before clamping otherwise."""
        streams = Streams.of(generator, len(x), x.device)
        shape = x.shape[1:]
        low, high = self.bounds
        match self.norm:
            case "linf":
                return self.project(x + (2 * streams.uniform(shape).to(x) - 1) * self.eps, x)
            case "l2" | "l1":
                direction = streams.normal(shape).to(x) if self.norm == "l2" else streams.laplace(shape).to(x)
                size = self.distance(direction, torch.zeros_like(direction)).clamp_min(1e-12)
                d = direction[0].numel()
                radius = self.eps * streams.uniform((1,)).to(x).squeeze(1) ** (1 / d)
                return self.project(x + direction * (radius / size).view(-1, *[1] * len(shape)), x)
            case "l0":
                return self.project(low + (high - low) * streams.uniform(shape).to(x), x)
