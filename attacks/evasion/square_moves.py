"""The moves of Square: what one query changes. All that random words decide is worked out for many queries at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..threat import Threat
from .windows import bump_pairs, corners, outside, pixels, signs

FALL_OFF = {"l2": 2, "l1": 4}
"""How fast a bump falls off from its centre, as a power of the distance."""


class Sizes(NamedTuple):
    """Height and width of the image, and of a window."""

    h: int
    w: int
    side_h: int
    side_w: int


class Proposal(NamedTuple):
    """New points, written over the best so far, and how to undo them.

    Attributes:
        places: int64 ``(m, c, area)``, the pixels that changed; None: any may have.
        before: what was there.
        rows: int64, the samples for which anything changed; None: all.
        slack: ``(m, 1, 1)``, what each new point leaves of eps^p; None in linf.
    """

    places: Tensor | None
    before: Tensor
    rows: Tensor | None = None
    slack: Tensor | None = None


class Moves(Protocol):
    """The moves of the next queries, for the samples of a walk."""

    def __len__(self) -> int: ...

    def propose(self, place: int, current: Tensor, slack: Tensor, /) -> Proposal:
        """Turns the best points so far, ``current`` ``(m, c, h * w)``, into those of query ``place``.

        Args:
            slack: ``(m, 1, 1)``, what ``|current - x|^p`` leaves of eps^p.
        """
        ...


def planned(x: Tensor, threat: Threat, sizes: Sizes, words: Tensor) -> Moves:
    """Moves from the inputs ``(m, c, h * w)`` and random ``words``, int64 ``(q, m, 3 + c)`` for q queries."""
    if threat.norm == "linf":
        return Repaints.plan(x, threat, sizes, words)
    if sizes.side_h == sizes.side_w == 1:
        return Exchanges.plan(x, threat, words)
    return Shifts.plan(x, threat, sizes, words)


@dataclass(frozen=True, slots=True)
class Repaints:
    """linf: all of a window gets one colour, at eps from the input.

    Attributes:
        window, colour: ``(m, c, area)`` of each query: pixels and what they become.
    """

    window: tuple[Tensor, ...]
    colour: tuple[Tensor, ...]

    @classmethod
    def plan(cls, x: Tensor, threat: Threat, sizes: Sizes, words: Tensor) -> Repaints:
        corner = corners(*sizes, words[..., 0])
        window = pixels(corner, sizes.side_h, sizes.side_w, sizes.w)[:, :, None].expand(-1, -1, x.shape[1], -1)
        base = x.expand(len(words), *x.shape).gather(3, window)
        colour = torch.add(base, signs(words[..., 3:])[..., None].to(x), alpha=threat.eps).clamp_(*threat.bounds)
        return cls(window.unbind(0), colour.unbind(0))

    def __len__(self) -> int:
        return len(self.window)

    def propose(self, place: int, current: Tensor, _slack: Tensor, /) -> Proposal:
        window, colour = self.window[place], self.colour[place]
        before = current.gather(2, window)
        rows = (colour != before).flatten(1).any(1).nonzero().squeeze(1)
        current.scatter_(2, window, colour)
        return Proposal(window, before, None if len(rows) == len(current) else rows)


@dataclass(frozen=True, slots=True)
class Shifts:
    """l2 and l1: takes the perturbation out of one window and spends it, with what is left of eps, in another.

    Only the two windows change, so nothing else is looked at: norms of whole images follow from theirs.

    Attributes:
        both: ``(m, c, 2 * area)`` of each query: pixels of the window that gets, ``here``, then of the one that gives.
        base: the inputs there.
        counted: ``(m, 1, 2 * area)``, 0 for the pixels of the second window that the first has too, else 1.
        bumps: ``(m, c, area)``, what is added in the first.
    """

    x: Tensor
    threat: Threat
    both: tuple[Tensor, ...]
    here: tuple[Tensor, ...]
    base: tuple[Tensor, ...]
    base_here: tuple[Tensor, ...]
    counted: tuple[Tensor, ...]
    bumps: tuple[Tensor, ...]

    @classmethod
    def plan(cls, x: Tensor, threat: Threat, sizes: Sizes, words: Tensor) -> Shifts:
        _, w, side_h, side_w = sizes
        corner = corners(*sizes, words[..., :2])
        both = pixels(corner, side_h, side_w, w).flatten(2)[:, :, None].expand(-1, -1, x.shape[1], -1)
        apart = outside(corner[..., 1], corner[..., 0], side_h, side_w, w)
        counted = torch.cat([torch.ones_like(apart), apart], 2).to(x)[:, :, None]
        pairs = bump_pairs(side_h, side_w, FALL_OFF[threat.norm], x.device).to(x)
        bumps = pairs[words[..., 2] & 1][:, :, None] * signs(words[..., 3:])[..., None]
        base = x.expand(len(words), *x.shape).gather(3, both)
        first = apart.shape[2]
        columns = (both, both[..., :first], base, base[..., :first], counted, bumps)
        return cls(x, threat, *(column.unbind(0) for column in columns))

    def __len__(self) -> int:
        return len(self.both)

    def propose(self, place: int, current: Tensor, slack: Tensor, /) -> Proposal:
        both, here, base_here, bumps = self.both[place], self.here[place], self.base_here[place], self.bumps[place]
        c, area = bumps.shape[1:]
        p = power(self.threat)
        before = current.gather(2, both)
        delta = (before - self.base[place]).mul_(self.counted[place])
        old, freed = delta.narrow(2, 0, area), torch.linalg.vector_norm(delta, p, 2, keepdim=True)
        budget = with_power(slack if c == 1 else slack / c, freed, p)
        left = budget if c == 1 else slack + powers(freed, p).sum(1, keepdim=True)
        budget = budget.clamp_min(0)
        new = torch.addcdiv(bumps, old, torch.linalg.vector_norm(old, p, 2, keepdim=True).clamp_min_(1e-12))
        size = torch.linalg.vector_norm(new, p, 2, keepdim=True).clamp_min_(1e-12)
        new.mul_(budget.sqrt_().div_(size) if p == 2 else budget.mul_(c).div_(size)).add_(base_here)
        if p == 1 and c > 1:  # more than there is to spend: the projection takes it from everywhere
            before = current.clone()
            current.scatter_(2, both, self.base[place]).scatter_(2, here, new)
            # Its sums follow the longest row of a batch: in float64 so that rounding does not tell batches apart.
            current.copy_(self.threat.project(current.double(), self.x.double()))
            return Proposal(None, before, None, self.threat.eps - (current - self.x).abs().sum((1, 2), keepdim=True))
        colour = new.clamp_(*self.threat.bounds)
        current.scatter_(2, both, self.base[place]).scatter_(2, here, colour)
        spent = torch.linalg.vector_norm(colour - base_here, p, (1, 2), keepdim=True)
        return Proposal(both, before, None, with_power(left, spent, p, -1))


@dataclass(frozen=True, slots=True)
class Exchanges:
    """l2 and l1, single features: two of them share anew what they had, and what is left of eps.

    The first gets all of it or a random part, with a random sign. The second gets the rest and keeps its sign; one
    that had nothing gets a random sign. Channels are no different from pixels.

    Attributes:
        both: ``(m, 1, 2)`` of each query: the two features.
        base: the inputs there.
        counted: 0 for the second where it is the first, else 1.
        part: what each gets of the budget, and ``sign`` how; the second's counts where it had nothing.
    """

    threat: Threat
    both: tuple[Tensor, ...]
    base: tuple[Tensor, ...]
    counted: tuple[Tensor, ...]
    part: tuple[Tensor, ...]
    sign: tuple[Tensor, ...]

    @classmethod
    def plan(cls, x: Tensor, threat: Threat, words: Tensor) -> Exchanges:
        x = x.flatten(1)
        both = (words[..., :2] >> 1) % x.shape[1]
        same = both[..., 0] == both[..., 1]
        word = words[..., 2]
        first = torch.where((word & 1).bool() | same, 1.0, ((word >> 8) & 0xFFFF).to(x) / 0xFFFF)
        part = torch.stack([first, 1 - first], 2)
        sign = torch.stack([signs(words[..., 3]), signs(word >> 1)], 2).to(x)
        counted = torch.stack([torch.ones_like(same), ~same], 2).to(x)
        base = x.expand(len(words), *x.shape).gather(2, both)
        columns = (column[:, :, None].unbind(0) for column in (both, base, counted, part, sign))
        return cls(threat, *columns)

    def __len__(self) -> int:
        return len(self.both)

    def propose(self, place: int, current: Tensor, slack: Tensor, /) -> Proposal:
        both, base, p = self.both[place], self.base[place], power(self.threat)
        features = current.view(len(current), 1, -1)
        before = features.gather(2, both)
        delta = (before - base).mul_(self.counted[place])
        freed = powers(delta, p).sum(2, keepdim=True)
        budget = torch.add(freed, slack).clamp_min_(0)
        first, second = self.sign[place].split(1, 2)
        had = delta.narrow(2, 1, 1)
        sign = torch.cat([first, torch.where(had == 0, second, had.sign())], 2)
        colour = root(self.part[place] * budget, p).mul_(sign).add_(base).clamp_(*self.threat.bounds)
        slack = (slack + freed).sub_(powers(colour - base, p).sum(2, keepdim=True))
        features.scatter_(2, both, colour).scatter_(2, both.narrow(2, 0, 1), colour.narrow(2, 0, 1))
        return Proposal(both, before, None, slack)


def power(threat: Threat) -> int:
    """The p of an lp norm."""
    return 2 if threat.norm == "l2" else 1


def powers(delta: Tensor, p: int) -> Tensor:
    """``|delta|^p``."""
    return delta.square() if p == 2 else delta.abs()


def root(mass: Tensor, p: int) -> Tensor:
    """The p-th root, a new tensor."""
    return mass.sqrt() if p == 2 else mass.clone()


def with_power(mass: Tensor, size: Tensor, p: int, sign: int = 1) -> Tensor:
    """``mass + sign * size^p``."""
    return torch.addcmul(mass, size, size, value=sign) if p == 2 else torch.add(mass, size, alpha=sign)
