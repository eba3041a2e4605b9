"""Square attack: random search with square-shaped updates, scores only (arXiv 1912.00049; l1: arXiv 2103.01208)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..errors import UnsupportedError
from ..losses import margin
from ..models import attacking
from ..streams import Streams
from ..threat import Norm, Threat

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After these of 10,000 queries the share of changed pixels is halved (the paper's schedule)."""

_AHEAD = 64
"""Queries for which random words are drawn at once."""

_FALL_OFF = {"l2": 2, "l1": 4}
"""How fast a bump falls off from its centre, as a power of the distance."""


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
        result, result_margin = self.start(x, streams), torch.empty(len(x), device=x.device)
        asked, result_asked = torch.ones_like(y), torch.ones_like(y)
        value = self.margin(result, y)
        result_margin.copy_(value)
        at = torch.arange(len(x), device=x.device)
        current = result.clone()
        words = streams.bits((0, 0))
        for query in range(1, self.queries):
            if (query - 1) % _AHEAD == 0:
                words = streams.bits((_AHEAD, 3 + x.shape[1]))
            done = value < 0
            if bool(done.any()):
                result[at[done]], result_margin[at[done]], result_asked[at[done]] = (
                    current[done],
                    value[done],
                    asked[done],
                )
                keep = (~done).nonzero().squeeze(1)
                at, x, y, current, value = at[keep], x[keep], y[keep], current[keep], value[keep]
                streams, words, asked = streams.select(keep), words[keep], asked[keep]
            if len(at) == 0:
                break
            proposal = self.propose(x, current, self.share(query), words[:, (query - 1) % _AHEAD])
            changed = self._changed(proposal, current)
            if len(changed) == 0:
                continue
            whole = len(changed) == len(at)
            asked[changed] += 1
            new = self.margin(proposal if whole else proposal[changed], y if whole else y[changed])
            better = changed[new < value[changed]]
            value[changed] = torch.minimum(value[changed], new)
            current[better] = proposal[better]
        result[at], result_margin[at], result_asked[at] = current, value, asked
        return result, result_margin, result_asked

    def _changed(self, proposal: Tensor, current: Tensor) -> Tensor:
        """Which samples, by position, have a proposal that is not what they have; in l2 and l1 all."""
        if self.threat.norm != "linf":
            return torch.arange(len(current), device=current.device)
        return (proposal != current).flatten(1).any(1).nonzero().squeeze(1)

    def share(self, query: int) -> float:
        """Share of pixels that a proposal changes."""
        position = int(query / self.queries * 10_000)
        return self.p_init / 2 ** sum(position > limit for limit in _HALVINGS)

    def start(self, x: Tensor, streams: Streams) -> Tensor:
        """Vertical stripes for linf, a grid of bumps otherwise."""
        _, c, h, w = x.shape
        if self.threat.norm == "linf":
            return self.threat.project(x + self.threat.eps * streams.signs((c, 1, w)).to(x), x)
        delta = torch.zeros_like(x)
        side_h, side_w = max(h // 5, 1), max(w // 5, 1)
        pattern = _bump_pair(side_h, side_w, _FALL_OFF[self.threat.norm]).to(x)
        for top in range((h - h // side_h * side_h) // 2, h - side_h + 1, side_h):
            for left in range((w - w // side_w * side_w) // 2, w - side_w + 1, side_w):
                delta[:, :, top : top + side_h, left : left + side_w] = pattern * streams.signs((c, 1, 1)).to(x)
        return self.fit(x, delta)

    def propose(self, x: Tensor, current: Tensor, share: float, words: Tensor) -> Tensor:
        """One new point a sample, from random ``words`` int64 ``(n, 3 + c)``."""
        _, c, h, w = x.shape
        side = max(round(math.sqrt(share * h * w)), 1) if h > 1 else max(round(share * w), 1)
        if self.threat.norm == "linf":
            side_h, side_w = min(side, h), min(side, w)
            window = _windows(h, w, side_h, side_w, words[:, 0])[:, None].expand(-1, c, -1)
            sign = _signs(words[:, 3:]).to(x)
            flat, base = current.flatten(2), x.flatten(2).gather(2, window)
            low, high = self.threat.bounds
            colour = (base + self.threat.eps * sign).clamp(low, high)
            return flat.scatter(2, window, colour).view_as(x)
        side = max(side, self.finest) | 1
        return self._move_mass(x, current, min(side, h), min(side, w), words)

    def _move_mass(self, x: Tensor, current: Tensor, side_h: int, side_w: int, words: Tensor) -> Tensor:
        """Takes the perturbation out of one window and spends it, with what is left of eps, in another."""
        _, c, h, w = x.shape
        if side_h * side_w == 1 and c > 1:  # single features: channels are no different from pixels
            flat, now = x.flatten(1)[:, None, None], current.flatten(1)[:, None, None]
            return self._move_mass(flat, now, 1, 1, words[:, :4]).view_as(x)
        p = 2 if self.threat.norm == "l2" else 1
        delta = (current - x).flatten(2)
        here = _windows(h, w, side_h, side_w, words[:, 0])[:, None].expand(-1, c, -1)
        there = _windows(h, w, side_h, side_w, words[:, 1])[:, None].expand(-1, c, -1)
        old, other = delta.gather(2, here), delta.gather(2, there)
        spare = (self.threat.eps**p - _power_sum(delta, p).sum(1, keepdim=True)).clamp_min(0)
        rest = delta.scatter_(2, here, 0.0)
        freed = _power_sum(old, p) + _power_sum(rest.gather(2, there), p)
        rest = rest.scatter_(2, there, 0.0)
        budget = spare / c + freed
        if side_h * side_w == 1:
            return self._trade(x, rest, (here, there), other, budget, words)
        pattern = _bump_pair(side_h, side_w, _FALL_OFF[self.threat.norm]).to(x)
        turned = _bump_pair(side_w, side_h, _FALL_OFF[self.threat.norm]).T.to(x)
        flip = (words[:, 2, None, None] & 1).bool()
        bump = torch.where(flip, pattern.flatten(), turned.flatten()) * _signs(words[:, 3:]).to(x)
        new = bump + old / old.norm(p, dim=2, keepdim=True).clamp_min(1e-12)
        new = new / new.norm(p, dim=2, keepdim=True).clamp_min(1e-12) * (budget**0.5 if p == 2 else budget * c)
        return self.fit(x, rest.scatter(2, here, new).view_as(x))

    def _trade(
        self, x: Tensor, rest: Tensor, pixels: tuple[Tensor, Tensor], other: Tensor, budget: Tensor, words: Tensor
    ) -> Tensor:
        """Gives the first of two pixels all that they have, or a random part; the second keeps its sign."""
        p = 2 if self.threat.norm == "l2" else 1
        word = words[:, 2, None, None]
        part = torch.where((word & 1).bool(), 1.0, ((word >> 8) & 0xFFFF).to(x) / 0xFFFF)
        first = _signs(words[:, 3:]).to(x) * (part * budget) ** (1 / p)
        second = other.sign() * ((1 - part) * budget) ** (1 / p)
        return self.fit(x, rest.scatter(2, pixels[1], second).scatter(2, pixels[0], first).view_as(x))

    def fit(self, x: Tensor, delta: Tensor) -> Tensor:
        """Scales (l2) or projects (l1) a perturbation to the ball's surface, inside the bounds."""
        if self.threat.norm == "l2":
            size = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
            return torch.addcmul(x, delta, self.threat.eps / size).clamp_(*self.threat.bounds)
        return self.threat.project(x + delta, x)


def _power_sum(flat: Tensor, p: int) -> Tensor:
    """``(n, c, 1)``: sum of ``|v|^p`` over the last dimension of ``(n, c, d)``."""
    return (flat.square() if p == 2 else flat.abs()).sum(2, keepdim=True)


def _signs(words: Tensor) -> Tensor:
    """-1 or 1 ``(n, c, 1)`` from the lowest bit of ``(n, c)``."""
    return ((words & 1) * 2 - 1)[:, :, None]


def _windows(h: int, w: int, side_h: int, side_w: int, word: Tensor) -> Tensor:
    """Flat pixel indices ``(n, side_h * side_w)`` of the window that each sample's random ``word`` ``(n,)`` picks."""
    corner = (word >> 1) % ((h - side_h + 1) * (w - side_w + 1))
    top, left = corner // (w - side_w + 1), corner % (w - side_w + 1)
    rows = top[:, None] + torch.arange(side_h, device=corner.device)
    columns = left[:, None] + torch.arange(side_w, device=corner.device)
    return (rows[:, :, None] * w + columns[:, None, :]).flatten(1)


def _bump(h: int, w: int, power: int) -> Tensor:
    """``(h, w)``: concentric rectangles, the r-th adding 1 / (r + 1)^power."""
    rows, columns = torch.arange(h) - h // 2, torch.arange(w) - w // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    weights = 1.0 / torch.arange(1, max(h // 2, w // 2) + 2) ** power
    return weights.flip(0).cumsum(0).flip(0)[ring.clamp_max(len(weights) - 1)]


@lru_cache(maxsize=256)
def _bump_pair(h: int, w: int, power: int) -> Tensor:
    """``(h, w)``: a positive bump above a negative one, of norm 1 (l2 for power 2, l1 for power 4)."""
    if h > 1:
        halves = [_bump(h // 2, w, power), -_bump(h - h // 2, w, power)]
        pair = torch.cat([half / half.norm(2 if power == 2 else 1) for half in halves])
    else:
        pair = torch.ones(h, w)
    return pair / pair.norm(2 if power == 2 else 1)
