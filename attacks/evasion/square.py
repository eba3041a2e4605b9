"""Square attack: random search with square-shaped updates, scores only (arXiv 1912.00049; l1: arXiv 2103.01208)."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..errors import UnsupportedError
from ..losses import margin
from ..models import attacking
from ..search import deferred
from ..streams import Streams
from ..threat import Norm, Threat
from .square_moves import FALL_OFF, Moves, Proposal, Sizes, planned, power, powers
from .windows import bump_pair

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After these of 10,000 queries the share of changed pixels is halved (the paper's schedule)."""

_AHEAD = 64
"""Queries for which random words are drawn at once."""

_PLANNED = 2**16
"""Window pixels that are planned at once."""

_QUERIES_PER_FEATURE = 20
"""From so many on, windows in l2 and l1 go down to single features."""

_LOOKS = 8
"""On a device, who fell is looked at every so many queries: the answer makes the host wait."""


@dataclass(frozen=True, slots=True)
class Square:
    """Random search that repaints one window a query and keeps what lowers the margin.

    Needs scores only. Inputs ``(n, c, h, w)``; vectors ``(n, d)`` are treated as images one pixel high.
    A proposal that would leave the input as it is (the window already has that colour) is not sent to the model: the
    result is the same as in the paper, with fewer queries.

    Args:
        queries: at most this many model evaluations a sample.
        p_init: share of pixels changed by the first proposals.
        finest: smallest side of a window in l2 and l1, odd. The paper's is 3; 1 moves single features at the end. None:
            1 for vectors, which have no neighbourhoods, and for images with at least 20 queries a feature; else 3.
        restarts: independent runs for samples that withstood the ones before.
    """

    queries: int = 5000
    p_init: float = 0.8
    finest: int | None = None
    restarts: int = 1

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "scores"
    unit: ClassVar[Unit] = "queries"

    def __post_init__(self) -> None:
        if min(self.queries, self.restarts) < 1 or not 0 < self.p_init <= 1:
            raise UnsupportedError("square needs queries >= 1, restarts >= 1 and p_init in (0, 1]")
        if self.finest is not None and (self.finest < 1 or self.finest % 2 == 0):
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
            finest = self.finest or self._finest(images)
            search = _Search(lambda z: model(z.view(-1, *x.shape[1:])), threat, self.queries, self.p_init, finest)
            left = (search.margin(images, y) <= 0).nonzero().squeeze(1)
            spent = torch.ones_like(y)
            for restart in range(self.restarts):
                if len(left) == 0:
                    break
                found, value, asked = search.run(images[left], y[left], streams.select(left).fork(restart))
                best[left] = found
                spent[left] += asked
                left = left[(value <= 0).nonzero().squeeze(1)]
        return best.view_as(x), spent

    def _finest(self, images: Tensor) -> int:
        """Three pixels a side find more in few queries; single ones once those have come by everywhere."""
        few = self.queries < _QUERIES_PER_FEATURE * images.shape[1:].numel()
        return 3 if images.shape[2] > 1 and few else 1


@dataclass(slots=True)
class _Walk:
    """Where the search of each sample not yet fooled stands.

    Attributes:
        at: int64 ``(m,)``, places in the batch.
        y, value, asked: labels, margins of the best points, evaluations so far, ``(m,)``.
        x, current: inputs and best points, ``(m, c, h * w)``.
        slack: ``(m, 1, 1)``, what ``|current - x|^p`` leaves of eps^p in l2 and l1, kept up to date move by move.
        streams, words: randomness, and what was drawn of it for the next queries, int64 ``(m, _AHEAD, 3 + c)``.
    """

    at: Tensor
    y: Tensor
    value: Tensor
    asked: Tensor
    x: Tensor
    current: Tensor
    slack: Tensor
    words: Tensor
    streams: Streams

    def __len__(self) -> int:
        return len(self.at)

    def select(self, rows: Tensor) -> _Walk:
        names = [field.name for field in fields(self) if field.name != "streams"]
        return _Walk(**{name: getattr(self, name)[rows] for name in names}, streams=self.streams.select(rows))

    def settle(self, proposal: Proposal, value: Tensor) -> None:
        """Keeps the new points whose margins ``value`` are larger and undoes the others."""
        places, before, rows, slack = proposal
        if rows is not None:
            value = self.value.index_copy(0, rows, value)
        better = value > self.value
        if deferred(value):  # who fell and is still here stays where it fell
            standing = self.value <= 0
            better &= standing
            self.asked += standing if rows is None else standing & torch.zeros_like(standing).index_fill_(0, rows, True)
        elif rows is None:
            self.asked += 1
        else:
            self.asked[rows] += 1
        self.value = torch.where(better, value, self.value)
        mask = better.view(-1, 1, 1)
        if slack is not None:
            self.slack = torch.where(mask, slack, self.slack)
        if places is None:
            self.current = torch.where(mask, self.current, before)
        else:
            one_channel = before.shape[1] != self.current.shape[1]
            current = self.current.view(len(before), 1, -1) if one_channel else self.current
            current.scatter_(2, places, torch.where(mask, current.gather(2, places), before))


@dataclass(frozen=True, slots=True)
class _Search:
    model: Model
    threat: Threat
    queries: int
    p_init: float
    finest: int

    def margin(self, x: Tensor, y: Tensor) -> Tensor:
        """``(n,)``: how close each sample is to success; positive is success."""
        value = margin(self.model(x).float(), y)
        return -value if self.threat.targeted else value

    def run(self, x: Tensor, y: Tensor, streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """The best points ``(n, c, h, w)``, their margins ``(n,)``, and the evaluations that each sample took."""
        walk = self.begin(x, y, streams)
        points, value, asked = walk.current.clone(), walk.value.clone(), walk.asked.clone()

        def settle(walk: _Walk) -> None:
            points[walk.at], value[walk.at], asked[walk.at] = walk.current, walk.value, walk.asked

        moves, place = None, 0
        for query in range(1, self.queries):
            look = not deferred(x) or query % _LOOKS == 1
            if look and float(walk.value.max()) > 0:
                settle(walk)
                walk, moves = walk.select((walk.value <= 0).nonzero().squeeze(1)), None
                if len(walk) == 0:
                    break
            if (query - 1) % _AHEAD == 0:
                walk.words = walk.streams.bits((_AHEAD, 3 + x.shape[1]))
                walk.slack = self.slack(walk)  # so that rounding adds up no further
            if moves is None or place == len(moves):
                moves, place = self.plan(walk, query, x.shape[2:]), 0
            proposal = moves.propose(place, walk.current, walk.slack)
            place += 1
            if (rows := proposal.rows) is None:
                walk.settle(proposal, self.margin(walk.current, walk.y))
            elif len(rows):
                walk.settle(proposal, self.margin(walk.current[rows], walk.y[rows]))
        settle(walk)
        return points.view(x.shape), value, asked

    def begin(self, x: Tensor, y: Tensor, streams: Streams) -> _Walk:
        """Every sample at its starting point, which is evaluated."""
        current = self.start(x, streams).reshape(*x.shape[:2], -1)
        return _Walk(
            at=torch.arange(len(x), device=x.device),
            y=y,
            value=self.margin(current, y).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf),
            asked=torch.ones_like(y),
            x=x.reshape(current.shape),
            current=current,
            slack=current.new_zeros(len(x), 1, 1),
            words=streams.bits((0, 0)),
            streams=streams,
        )

    def slack(self, walk: _Walk) -> Tensor:
        """What the perturbations leave of eps^p, ``(m, 1, 1)``; linf has no use for it."""
        if self.threat.norm == "linf":
            return walk.slack
        p = power(self.threat)
        return self.threat.eps**p - powers(walk.current - walk.x, p).sum((1, 2), keepdim=True)

    def plan(self, walk: _Walk, query: int, image: tuple[int, ...]) -> Moves:
        """The moves from ``query`` on: as many as have one size of window and words drawn, and fit."""
        sizes, drawn = self.sizes(query, *image), (query - 1) % _AHEAD
        area = sizes.side_h * sizes.side_w * walk.x.shape[1]
        most = max(min(_AHEAD - drawn, _PLANNED // (len(walk) * area)), 1)
        alike = takewhile(lambda later: self.sizes(later, *image) == sizes, range(query, query + most))
        words = walk.words[:, drawn : drawn + len(list(alike))].transpose(0, 1)
        return planned(walk.x, self.threat, sizes, words)

    def sizes(self, query: int, h: int, w: int) -> Sizes:
        """Of images and of the windows of a query."""
        share = self.share(query)
        side = max(round(math.sqrt(share * h * w)), 1) if h > 1 else max(round(share * w), 1)
        if self.threat.norm != "linf":
            side = max(side, self.finest) | 1
        return Sizes(h, w, min(side, h), min(side, w))

    def share(self, query: int) -> float:
        """Share of pixels that a proposal changes."""
        position = int(query / self.queries * 10_000)
        return self.p_init / 2 ** bisect_left(_HALVINGS, position)

    def start(self, x: Tensor, streams: Streams) -> Tensor:
        """Vertical stripes for linf, a grid of bumps otherwise; on the ball's surface, inside the bounds."""
        _, c, h, w = x.shape
        if self.threat.norm == "linf":
            return self.threat.project(x + self.threat.eps * streams.signs((c, 1, w)).to(x), x)
        delta = torch.zeros_like(x)
        side_h, side_w = max(h // 5, 1), max(w // 5, 1)
        pattern = bump_pair(side_h, side_w, FALL_OFF[self.threat.norm]).to(x)
        for top in range((h - h // side_h * side_h) // 2, h - side_h + 1, side_h):
            for left in range((w - w // side_w * side_w) // 2, w - side_w + 1, side_w):
                delta[:, :, top : top + side_h, left : left + side_w] = pattern * streams.signs((c, 1, 1)).to(x)
        if self.threat.norm == "l1":
            return self.threat.project(x + delta, x)
        size = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        return torch.addcmul(x, delta, self.threat.eps / size).clamp_(*self.threat.bounds)
