"""Square attack: random search with square-shaped updates, scores only (arXiv 1912.00049; l1: arXiv 2103.01208)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..errors import UnsupportedError
from ..losses import margin
from ..models import attacking
from ..streams import Streams
from ..threat import Norm, Threat
from .windows import bump_pair, bump_pairs, signs, windows

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After these of 10,000 queries the share of changed pixels is halved (the paper's schedule)."""

_AHEAD = 64
"""Queries for which random words are drawn at once."""

_FALL_OFF = {"l2": 2, "l1": 4}
"""How fast a bump falls off from its centre, as a power of the distance."""

_Sizes = tuple[int, int, int, int]
"""Height and width of the image, and of a window."""


@dataclass(frozen=True, slots=True)
class Square:
    """Random search that repaints one window a query and keeps what lowers the margin.

    Needs scores only. Inputs ``(n, c, h, w)``; vectors ``(n, d)`` are treated as images one pixel high.
    A proposal that would leave the input as it is (the window already has that colour) is not sent to the model: the
    result is the same as in the paper, with fewer queries.

    Args:
        queries: at most this many model evaluations a sample.
        p_init: share of pixels changed by the first proposals.
        finest: smallest side of a window in l2 and l1, odd; the paper's is 3. 1 moves single features at the end, which
            suits inputs without neighbourhoods, such as table rows.
        restarts: independent runs for samples that withstood the ones before.
    """

    queries: int = 5000
    p_init: float = 0.8
    finest: int = 3
    restarts: int = 1

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "scores"
    unit: ClassVar[Unit] = "queries"

    def __post_init__(self) -> None:
        if min(self.queries, self.restarts) < 1 or not 0 < self.p_init <= 1:
            raise UnsupportedError("square needs queries >= 1, restarts >= 1 and p_init in (0, 1]")
        if self.finest < 1 or self.finest % 2 == 0:
            raise UnsupportedError(f"finest of square is {self.finest}: it must be an odd number of pixels")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """The best point found for each sample, shape of ``x``.

        Raises:
            UnsupportedError: for l0 threats.
        """
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: model evaluations of each sample until it fell, else in all."""
        check_norm(self, threat)
        streams = Streams.of(generator, len(x), x.device)
        images = x if x.dim() == 4 else x.flatten(1)[:, None, None, :]
        best = images.clone()
        with attacking(model), torch.no_grad():
            search = _Search(lambda z: model(z.view(-1, *x.shape[1:])), threat, self.queries, self.p_init, self.finest)
            left = (search.margin(images, y) >= 0).nonzero().squeeze(1)
            spent = torch.ones_like(y)
            for restart in range(self.restarts):
                if len(left) == 0:
                    break
                found, value, asked = search.run(images[left], y[left], streams.select(left).fork(restart))
                best[left] = found
                spent[left] += asked
                left = left[value >= 0]
        return best.view_as(x), spent


@dataclass(slots=True)
class _Walk:
    """Where the search of each sample not yet fooled stands.

    Attributes:
        at: int64 ``(m,)``, places in the batch.
        y, value, asked: labels, margins of the best points, evaluations so far, ``(m,)``.
        x, current: inputs and best points, ``(m, c, h * w)``.
        mass: ``(m, 1, 1)``, sum of ``|current - x|^p`` for l2 and l1, kept up to date window by window.
        streams, words: randomness, and what was drawn of it for the next queries, int64 ``(m, _AHEAD, 3 + c)``.
    """

    at: Tensor
    y: Tensor
    value: Tensor
    asked: Tensor
    x: Tensor
    current: Tensor
    mass: Tensor
    words: Tensor
    streams: Streams

    def __len__(self) -> int:
        return len(self.at)

    def select(self, rows: Tensor) -> _Walk:
        names = [field.name for field in fields(self) if field.name != "streams"]
        return _Walk(**{name: getattr(self, name)[rows] for name in names}, streams=self.streams.select(rows))

    def accept(self, proposal: _Proposal, value: Tensor) -> bool:
        """Moves to the points whose margins ``value`` are smaller; says whether there are any."""
        rows = proposal.rows
        if rows is None:
            self.asked += 1
            better = rows = (value < self.value).nonzero().squeeze(1)
        else:
            self.asked[rows] += 1
            better = (value < self.value[rows]).nonzero().squeeze(1)
            rows = rows[better]
        if len(rows) == 0:
            return False
        self.value[rows], self.current[rows] = value[better], proposal.points[better]
        if proposal.mass is not None:
            self.mass[rows] = proposal.mass[better]
        return True


@dataclass(frozen=True, slots=True)
class _Proposal:
    """New points ``(r, c, h * w)`` for some samples of a walk (``rows`` None: for all), with their mass."""

    points: Tensor
    rows: Tensor | None = None
    mass: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Search:
    model: Model
    threat: Threat
    queries: int
    p_init: float
    finest: int

    def margin(self, x: Tensor, y: Tensor) -> Tensor:
        """``(n,)``: how far each sample is from success; negative is success."""
        value = margin(self.model(x).float(), y)
        # losses.margin grows with the attacker's success: largest wrong logit minus the true one.
        return value if self.threat.targeted else -value

    def run(self, x: Tensor, y: Tensor, streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """The best points ``(n, c, h, w)``, their margins ``(n,)``, and the evaluations that each sample took."""
        _, c, h, w = x.shape
        walk = self.begin(x, y, streams)
        points, value, asked = torch.empty_like(walk.current), torch.empty_like(walk.value), torch.empty_like(y)

        def settle(walk: _Walk, rows: Tensor) -> None:
            at = walk.at[rows]
            points[at], value[at], asked[at] = walk.current[rows], walk.value[rows], walk.asked[rows]

        moved = True
        for query in range(1, self.queries):
            if moved and bool((fell := walk.value < 0).any()):
                settle(walk, fell)
                walk = walk.select((~fell).nonzero().squeeze(1))
                if len(walk) == 0:
                    break
            ahead = (query - 1) % _AHEAD
            if ahead == 0:
                walk.words = walk.streams.bits((_AHEAD, 3 + c))
                walk.mass = self.measure(walk)  # so that rounding adds up no further
            proposal = self.propose(walk, h, w, self.share(query), walk.words[:, ahead])
            moved = False
            if len(proposal.points):
                label = walk.y if proposal.rows is None else walk.y[proposal.rows]
                moved = walk.accept(proposal, self.margin(proposal.points, label))
        settle(walk, torch.arange(len(walk), device=x.device))
        return points.view(x.shape), value, asked

    def begin(self, x: Tensor, y: Tensor, streams: Streams) -> _Walk:
        """Every sample at its starting point, which is evaluated."""
        current = self.start(x, streams).reshape(*x.shape[:2], -1)
        return _Walk(
            at=torch.arange(len(x), device=x.device),
            y=y,
            value=self.margin(current, y),
            asked=torch.ones_like(y),
            x=x.reshape(current.shape),
            current=current,
            mass=current.new_zeros(len(x), 1, 1),
            words=streams.bits((0, 0)),
            streams=streams,
        )

    def measure(self, walk: _Walk) -> Tensor:
        """The mass of the perturbations; linf keeps none."""
        if self.threat.norm == "linf":
            return walk.mass
        return self._power_sum((walk.current - walk.x).flatten(1)[:, None])

    def share(self, query: int) -> float:
        """Share of pixels that a proposal changes."""
        position = int(query / self.queries * 10_000)
        return self.p_init / 2 ** sum(position > limit for limit in _HALVINGS)

    def start(self, x: Tensor, streams: Streams) -> Tensor:
        """Vertical stripes for linf, a grid of bumps otherwise; on the ball's surface, inside the bounds."""
        _, c, h, w = x.shape
        if self.threat.norm == "linf":
            return self.threat.project(x + self.threat.eps * streams.signs((c, 1, w)).to(x), x)
        delta = torch.zeros_like(x)
        side_h, side_w = max(h // 5, 1), max(w // 5, 1)
        pattern = bump_pair(side_h, side_w, _FALL_OFF[self.threat.norm]).to(x)
        for top in range((h - h // side_h * side_h) // 2, h - side_h + 1, side_h):
            for left in range((w - w // side_w * side_w) // 2, w - side_w + 1, side_w):
                delta[:, :, top : top + side_h, left : left + side_w] = pattern * streams.signs((c, 1, 1)).to(x)
        if self.threat.norm == "l1":
            return self.threat.project(x + delta, x)
        size = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        return torch.addcmul(x, delta, self.threat.eps / size).clamp_(*self.threat.bounds)

    def propose(self, walk: _Walk, h: int, w: int, share: float, words: Tensor) -> _Proposal:
        """One new point a sample, from random ``words`` int64 ``(m, 3 + c)``; none where it would change nothing."""
        side = max(round(math.sqrt(share * h * w)), 1) if h > 1 else max(round(share * w), 1)
        if self.threat.norm == "linf":
            return self._repaint(walk, (h, w, min(side, h), min(side, w)), words)
        side = max(side, self.finest) | 1
        sizes = h, w, min(side, h), min(side, w)
        x, current = walk.x, walk.current
        if sizes[2:] == (1, 1):  # single features: channels are no different from pixels
            x, current = x.flatten(1)[:, None], current.flatten(1)[:, None]
            sizes, words = (1, x.shape[2], 1, 1), words[:, :4]
        points, mass = self._move_mass(x, current, walk.mass, sizes, words)
        return _Proposal(points.view_as(walk.x), None, mass)

    def _repaint(self, walk: _Walk, sizes: _Sizes, words: Tensor) -> _Proposal:
        """Gives all of a window one colour, at eps from the input."""
        c = walk.x.shape[1]
        window = windows(*sizes, words[:, 0])[:, None].expand(-1, c, -1)
        sign = signs(words[:, 3:])[:, :, None].to(walk.x)
        colour = torch.add(walk.x.gather(2, window), sign, alpha=self.threat.eps).clamp_(*self.threat.bounds)
        changed = (colour != walk.current.gather(2, window)).flatten(1).any(1)
        if bool(changed.all()):
            return _Proposal(walk.current.scatter(2, window, colour))
        rows = changed.nonzero().squeeze(1)
        return _Proposal(walk.current[rows].scatter_(2, window[rows], colour[rows]), rows)

    def _move_mass(
        self, x: Tensor, current: Tensor, mass: Tensor, sizes: _Sizes, words: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes the perturbation out of one window and spends it, with what is left of eps, in another.

        Only the two windows change, so nothing else is looked at: norms of whole images follow from theirs.
        """
        c, p, single = x.shape[1], self._p, sizes[2:] == (1, 1)
        here, there = (window[:, None].expand(-1, c, -1) for window in windows(*sizes, words[:, :2]).unbind(1))
        points, base, far = current.clone(), x.gather(2, here), x.gather(2, there)
        old = points.gather(2, here).sub_(base)
        points.scatter_(2, here, base)
        other = points.gather(2, there).sub_(far)  # zero where the windows overlap: taken out already
        taken = self._power_sum(old)
        freed = taken + self._power_sum(other)
        budget = torch.add(freed, self.threat.eps**p - mass, alpha=1 / c).clamp_min_(0)
        mass = mass - freed.sum(1, keepdim=True)
        if single:
            new, left = self._split(other, budget, here == there, words)
            mass += self._power_sum(torch.sub(far, far := torch.add(far, left).clamp_(*self.threat.bounds)))
        else:
            new = self._bumps(sizes, old, taken, budget, words)
        points.scatter_(2, there, far)
        if p == 1 and c > 1:  # more than there is to spend: the projection takes it from everywhere
            points = self.threat.project(points.scatter_(2, here, base + new), x)
            return points, self._power_sum((points - x).flatten(1)[:, None])
        colour = torch.add(base, new).clamp_(*self.threat.bounds)
        mass += self._power_sum(colour - base).sum(1, keepdim=True)
        return points.scatter_(2, here, colour), mass

    def _bumps(self, sizes: _Sizes, old: Tensor, taken: Tensor, budget: Tensor, words: Tensor) -> Tensor:
        """What a window gets ``(m, c, area)``: a pair of bumps on top of what it had, with all of the budget."""
        pairs = bump_pairs(*sizes[2:], _FALL_OFF[self.threat.norm], old.device).to(old)
        bumps = pairs[words[:, 2] & 1][:, None] * signs(words[:, 3:])[:, :, None]
        new = torch.addcdiv(bumps, old, self._root(taken).clamp_min_(1e-12))
        size = torch.linalg.vector_norm(new, self._p, dim=2, keepdim=True).clamp_min_(1e-12)
        return new.mul_(self._root(budget).div_(size) if self._p == 2 else budget * old.shape[1] / size)

    def _split(self, other: Tensor, budget: Tensor, same: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the first of two pixels the budget ``(m, 1, 1)`` or a random part; the rest to the second.

        The second keeps its sign; one that had nothing gets a random sign.
        """
        word = words[:, 2, None, None]
        part = torch.where((word & 1).bool() | same, 1.0, ((word >> 8) & 0xFFFF).to(other) / 0xFFFF)
        first = signs(words[:, 3:])[:, :, None] * self._root(part * budget)
        sign = torch.where(other == 0, signs(word >> 1).to(other), other.sign())
        return first, sign * self._root((1 - part) * budget)

    @property
    def _p(self) -> int:
        return 2 if self.threat.norm == "l2" else 1

    def _power_sum(self, delta: Tensor) -> Tensor:
        """``(n, c, 1)``: sum of ``|v|^p`` over the last dimension of ``(n, c, d)``."""
        return (delta.square() if self._p == 2 else delta.abs()).sum(2, keepdim=True)

    def _root(self, mass: Tensor) -> Tensor:
        return mass.sqrt() if self._p == 2 else mass.clone()
