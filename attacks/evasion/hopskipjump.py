"""HopSkipJump: walks along the decision boundary towards the input, knowing labels only."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..errors import UnsupportedError
from ..models import attacking
from ..search import attackable, fooled, forward
from ..streams import Streams
from ..threat import Norm, Threat
from .minimum_norm import Closest, column
from .starts import beyond, ranked, start_points

_CHUNK = 16
"""Directions probed at a time for each sample."""

_ROWS = 256
"""Least points that a model call may hold: small batches of samples are cut no smaller than this."""

_FIRST_PULL, _ARC, _TRIED_STEPS = 11, 5, 4

_COMPARED, _ROUGH_PULL = 8, 5
"""Starts brought near the boundary, by so many bisections, before the closest are followed."""

_LOOK_AGAIN, _DECIDE = 0.03, 0.27
"""Shares of the queries after which several walks look for classes not met yet, and after which the closest goes on."""

_BEYOND, _NEW_CLASSES = 24, 4
_APART = 0x5851F42D4C957F2D
"""Sets the streams of a sample's walks apart."""


@dataclass(frozen=True, slots=True)
class HopSkipJump:
    """https://arxiv.org/abs/1904.02144, l2 and linf, all samples of a batch side by side; needs labels only.

    From a point just across the boundary, each round estimates the boundary's normal from the labels of random
    points around it, moves along it, and pulls the point back towards the input. Differences from the paper, each
    of which shortened the median distance on trained networks at equal queries: points are probed at a tenth of the
    distance, not at 1/d of it, so that fewer bisections suffice; normals of earlier rounds are remembered; rounds
    begin with few probes; several starts, from regions of different classes where there are any, are followed until
    it shows which leads closest; for l2 the next point is the one where the circle through input and point, in the
    plane of the normal, leaves the boundary (arXiv 2308.03163), the optimum for a flat boundary; and on images smooth
    noise and white noise take turns, whichever last gained more.

    Every sample makes the same number of queries, known beforehand: no sample's result depends on another.

    Args:
        queries: model evaluations a sample, at most; at least 100.
        first_probes: points probed in the first round; in round t, ``sqrt(t)`` times as many.
        reach: how far from the point probes lie, as a share of its distance.
        memory: weight of the normals of earlier rounds.
        smooth: side of the box that smooths noise for images; 0: chosen by their size; 1: white noise only.
        early_stop: leave a sample as soon as it fools the model within eps, rather than go on for a smaller change.
        starts: inputs ``(m, ...)`` that may serve as starting points, for example one of each class, besides the
            noise that every sample draws. Towards a target class noise seldom suffices.
    """

    queries: int = 5000
    first_probes: int = 30
    reach: float = 0.1
    memory: float = 0.7
    smooth: int = 0
    early_stop: bool = False
    starts: Tensor | None = field(default=None, repr=False, compare=False)

    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")
    access: ClassVar[Access] = "labels"
    minimal: ClassVar[bool] = True
    unit: ClassVar[Unit] = "queries"
    __pydantic_config__: ClassVar[dict[str, bool]] = {"arbitrary_types_allowed": True}

    def __post_init__(self) -> None:
        if self.queries < 100 or self.first_probes < 2 or self.reach <= 0 or not 0 <= self.memory < 1:
            raise UnsupportedError(
                "HopSkipJump needs queries >= 100, first_probes >= 2, reach > 0 and memory in [0, 1)"
            )
        if self.smooth < 0 or (self.smooth and self.smooth % 2 == 0):
            raise UnsupportedError(f"smooth is {self.smooth}: give an odd number of pixels, or 0")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """The closest adversarial inputs found, shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: each sample's queries until it first lay within eps, else in all."""
        check_norm(self, threat)
        streams = Streams.of(generator, len(x), x.device)
        x_adv, spent = x.detach().clone(), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        with attacking(model), torch.no_grad():
            rows = attackable(model, x, y, targeted=threat.targeted).nonzero().squeeze(1)
            if len(rows):
                walk = _Walk(self, model, x.detach()[rows], y[rows], threat)
                x_adv[rows], spent[rows] = walk.run(streams.select(rows))
                lost = rows[~walk.closest.found]
                if len(lost):
                    insistent = _Walk(self, model, x.detach()[lost], y[lost], threat, asked=int(spent[lost[0]]))
                    x_adv[lost], spent[lost] = insistent.run(streams.select(lost).fork(1))
        return x_adv, spent

    @property
    def walks(self) -> int:
        """How many starts are followed at first: one for each thousand queries, at most four."""
        return min(max(self.queries // 1000, 1), 4)


class _Walk:
    """One batch on its way.

    ``rows`` ``(m,)`` are the places in the batch of the samples still active. All other tensors hold ``width`` walks
    for each of them, one after the other: at first several from different starts, then the best.
    """

    def __init__(self, attack: HopSkipJump, model: Model, x: Tensor, y: Tensor, threat: Threat, asked: int = 0) -> None:
        self.attack, self.model, self.threat = attack, model, threat
        self.closest = Closest(x, threat)
        self.spent = torch.zeros_like(y)
        self.inside = torch.zeros_like(y, dtype=torch.bool)
        self.rows, self.width = torch.arange(len(x), device=x.device), 1
        self.x, self.y, self.point, self.normal = x, y, x, x
        self.fooling = torch.ones_like(self.inside)  # false for a walk that has no start
        self.within = torch.full_like(y, -1)  # a class that a walk must not leave; -1: it may
        self.memories = torch.zeros(len(x), 2, *x.shape[1:], dtype=x.dtype, device=x.device)
        self.smooth = _box(attack.smooth, x)
        # Last gains of smooth and of white noise: what has not been tried yet comes first.
        self.gains = torch.full((len(x), 2), 2.0, device=x.device)
        self.asked, self.insist = asked, asked > 0
        self.looked = threat.targeted  # there is but one class to look for
        bits = math.ceil(math.log2(2 * math.sqrt(x[0].numel())))
        self.pulls = max(bits, 4) + (threat.norm == "linf")  # whose steps lead away first

    def run(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """The closest points ``(n, ...)``, and what each sample spent ``(n,)``."""
        attack, number = self.attack, 1
        streams = self._begin(streams)
        cost = (_ARC if self.threat.norm == "l2" else _TRIED_STEPS) + self.pulls
        while len(self.rows):
            if self.width > 1 and self.asked > attack.queries * _DECIDE:
                streams, number = self._narrow(streams), 2
            elif self.width > 1 and self.asked > attack.queries * _LOOK_AGAIN and not self.looked:
                streams = self._look_beyond(streams)
            left = attack.queries - self.asked - self.width * cost
            probes = min(int(attack.first_probes * math.sqrt(number)), left // self.width)
            if probes < attack.first_probes:
                if self.width == 1:
                    break
                streams, number = self._narrow(streams), 2
                continue
            self._round(streams.fork(self.asked), probes, number)
            number += 1
            if attack.early_stop:
                streams = self._keep((~self.inside[self.rows]).nonzero().squeeze(1), streams)
        left = self.rows[~self.inside[self.rows]]
        self.spent[left] = self.asked
        return self.closest.x_adv, self.spent

    def _round(self, streams: Streams, probes: int, number: int) -> None:
        smooth = (self.gains[:, 0] >= self.gains[:, 1]) & (self.smooth > 1)
        before = self._distance(self.point)
        self._remember(self._normal(streams, probes, smooth), smooth)
        if self.threat.norm == "l2":
            self._arc(_ARC)
        else:
            self._signed_steps(before / math.sqrt(number), _TRIED_STEPS)
        self._pull(self.pulls, before * (0.8 if self.threat.norm == "l2" else 0.5))
        self._learn(1 - self._distance(self.point) / before.clamp_min(1e-12), smooth)

    def _begin(self, streams: Streams) -> Streams:
        """Puts the walks on points that fool the model, near the boundary; leaves out samples that have none."""
        width = 1 if self.insist else self.attack.walks
        chosen, fools = self._corners(streams.fork(0)) if self.insist else self._starts(streams.fork(0), width)
        found = fools[:, 0]
        self.spent[self.rows[~found]] = self.asked
        streams = self._keep(found.nonzero().squeeze(1), streams)
        streams = self._multiply(width, streams)
        self.fooling = fools[found].flatten()
        self.point = chosen[found].flatten(0, 1)
        self._pull(_FIRST_PULL, torch.zeros_like(self.gains[:, 0]))
        return streams

    def _starts(self, streams: Streams, width: int) -> tuple[Tensor, Tensor]:
        """The best of a variety of points ``(n, width, ...)``, and which of them fool."""
        points = start_points(self.x, self.threat.bounds, streams, self.attack.starts)
        compared = max(_COMPARED if self.attack.queries >= 500 else 1, width)
        near = self._approach(points, compared)
        points, hits, _ = _pick(near, ranked(self.x, *near, self.threat)[:, :width])
        return points, hits

    def _approach(self, points: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` of the points ``(n, m, ...)``, roughly pulled to the boundary; which fool, and their labels."""
        hits, labels = self._look(points)
        points, hits, labels = _pick(
            (points, hits, labels), ranked(self.x, points, hits, labels, self.threat)[:, :count]
        )
        if count == 1:
            return points, hits, labels
        flat, x = points.flatten(0, 1), self.x.repeat_interleave(count, dim=0)
        size = self.threat.distance(flat, x)
        low, high = torch.zeros_like(hits, dtype=size.dtype), torch.ones_like(hits, dtype=size.dtype)
        for _ in range(_ROUGH_PULL):
            middle = (low + high) / 2
            hit, told = self._look(self._between(flat, middle.flatten(), size, x).view_as(points))
            hit &= hits
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
            labels = torch.where(hit, told, labels)
        return self._between(flat, high.flatten(), size, x).view_as(points), hits, labels

    def _look(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the points ``(n, m, ...)`` fool, and what the model takes them for; while samples have one walk."""
        told = [forward(self.model, own) for own in points.unbind(1)]
        hits = [self._note(own, logits) for own, logits in zip(points.unbind(1), told, strict=True)]
        return torch.stack(hits, dim=1), torch.stack([logits.argmax(1) for logits in told], dim=1)

    def _look_beyond(self, streams: Streams) -> Streams:
        """Lets walks begin at classes not met yet, in place of those whose class another walk is closer to.

        Random points seldom lie in the region of a class that another one surrounds or outshines. But where the
        input moves along the boundaries met so far, their classes gain nothing, so that others come to light. The new
        walks keep to their class, lest they come back to the boundaries that the others follow.
        """
        self.looked = True
        n, width = len(self.rows), self.width
        first = torch.arange(n, device=self.x.device) * width
        scout = copy(self)
        scout.x, scout.y, scout.within, scout.width = self.x[first], self.y[first], self.within[first], 1
        normals = self.normal.view(n, width, *self.x.shape[1:])
        points = beyond(scout.x, normals, self.threat.bounds, streams.select(first).fork(self.asked), _BEYOND)
        new = scout._approach(points, _NEW_CLASSES)
        own = self.point.view_as(normals)
        old = own, self.fooling.view(n, width), scout._look(own)[1]
        self.asked = scout.asked
        points, hits, labels = (torch.cat(pair, dim=1) for pair in zip(old, new, strict=True))
        pool = points, hits, labels
        chosen = ranked(scout.x, *pool, self.threat)[:, :width]
        fresh = (chosen >= width).flatten()
        streams = self._take((first[:, None] + chosen.masked_fill(chosen >= width, 0)).flatten(), streams)
        points, hits, labels = _pick(pool, chosen)
        self.point, self.fooling = points.flatten(0, 1), hits.flatten()
        self.within = torch.where(fresh, labels.flatten(), -1)
        self.memories = self.memories * column(~fresh, self.memories)
        self.gains = self.gains.masked_fill(fresh[:, None], 2.0)
        return Streams(streams.keys ^ (chosen.flatten() * fresh * _APART), streams.counter)

    def _corners(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """The closest fooling corner of the box among a tenth of the queries, for samples that little else fools."""
        low, high = self.threat.bounds
        best, least = self.x, torch.full_like(self.gains[:, 0], float("inf"), dtype=self.x.dtype)
        for _ in range(self.attack.queries // 10):
            corner = torch.where(streams.signs(self.x.shape[1:]) > 0, high, low).to(self.x)
            distance = self._distance(corner).masked_fill(~self._ask(corner), float("inf"))
            best = torch.where(column(distance < least, best), corner, best)
            least = torch.minimum(least, distance)
        return best[:, None], least.isfinite()[:, None]

    def _multiply(self, width: int, streams: Streams) -> Streams:
        """From one walk for each sample to ``width`` of them, each with streams of its own."""
        walk = torch.arange(len(self.rows), device=self.x.device).repeat_interleave(width)
        streams = self._take(walk, streams)
        self.width = width
        place = torch.arange(width, device=walk.device).repeat(len(self.rows))
        return Streams(streams.keys ^ (place * _APART))

    def _narrow(self, streams: Streams) -> Streams:
        """Goes on with the closest walk of each sample."""
        distance = self._distance(self.point).masked_fill(~self.fooling, float("inf")).view(-1, self.width)
        best = torch.arange(len(distance), device=distance.device) * self.width + distance.argmin(1)
        self.width, self.within = 1, torch.full_like(self.within, -1)
        return self._take(best, streams)

    def _keep(self, keep: Tensor, streams: Streams) -> Streams:
        """Goes on with some of the samples."""
        self.rows = self.rows[keep]
        offsets = torch.arange(self.width, device=keep.device)
        return self._take((keep[:, None] * self.width + offsets).flatten(), streams)

    def _take(self, walks: Tensor, streams: Streams) -> Streams:
        self.x, self.y, self.point, self.normal = (t[walks] for t in (self.x, self.y, self.point, self.normal))
        self.memories, self.gains, self.fooling = self.memories[walks], self.gains[walks], self.fooling[walks]
        self.within = self.within[walks]
        return streams.select(walks)

    def _ask(self, points: Tensor) -> Tensor:
        """Bool: which points fool the model, one query each; what fools is kept where it is closer."""
        return self._note(points, forward(self.model, points))

    def _note(self, points: Tensor, logits: Tensor) -> Tensor:
        hit = fooled(logits, self.y, targeted=self.threat.targeted)
        self.asked += self.width
        distance, best = self._distance(points).masked_fill(~hit, float("inf")).view(-1, self.width).min(1)
        walk = torch.arange(len(best), device=best.device) * self.width + best
        self.closest.record(points[walk], distance.isfinite(), self.rows)
        new = (distance <= self.threat.eps) & ~self.inside[self.rows]
        self.spent[self.rows] = torch.where(new, self.asked, self.spent[self.rows])
        self.inside[self.rows] |= new
        return hit & _keeps(logits, self.within)

    def _distance(self, points: Tensor) -> Tensor:
        return self.threat.distance(points, self.x)

    def _normal(self, streams: Streams, probes: int, smooth: Tensor) -> Tensor:
        """The boundary's normal at each point, of l2 length ``sqrt(probes)`` so that it weighs as it deserves."""
        n, shape = len(self.point), self.point.shape[1:]
        radius = self.attack.reach * (self.point - self.x).flatten(1).norm(dim=1).clamp_min(1e-12)
        weighted, plain = torch.zeros_like(self.point), torch.zeros_like(self.point)
        signs = torch.zeros_like(radius)
        for start in range(0, probes, _CHUNK):
            count = min(_CHUNK, probes - start)
            noise = self._noise(streams.normal((count, *shape)).to(self.point), smooth)
            noise = noise / noise.flatten(2).norm(dim=2).view(n, count, *[1] * len(shape))
            length = radius.view(n, 1, *[1] * len(shape))
            points = (self.point[:, None] + length * noise).clamp(*self.threat.bounds)
            moved = (points - self.point[:, None]) / length
            sign = self._labels(points).to(self.point) * 2 - 1
            weighted += (moved * sign.view(n, count, *[1] * len(shape))).sum(1)
            plain += moved.sum(1)
            signs += sign.sum(1)
        self.asked += probes * self.width
        mean = column(signs / probes, self.point)
        # The paper's baseline; where all labels agree it would leave nothing.
        normal = torch.where(mean.abs() < 1, weighted - mean * plain, mean * plain)
        return normal * column(math.sqrt(probes) / normal.flatten(1).norm(dim=1).clamp_min(1e-12), normal)

    def _remember(self, normal: Tensor, smooth: Tensor) -> None:
        """Adds a normal to those found before by the same kind of noise; the sum is the direction to take.

        White noise builds on what smooth noise found too, as long as that leads somewhere.
        """
        every, kind = torch.arange(len(smooth), device=smooth.device), (~smooth).long()
        own = self.attack.memory * self.memories[every, kind] + normal
        helps = ~smooth & (self.gains[:, 0] > 0) & (self.gains[:, 0] < 2)
        self.memories[every, kind] = own
        self.normal = own + column(helps, own) * self.attack.memory * self.memories[:, 0]

    def _learn(self, gain: Tensor, smooth: Tensor) -> None:
        """Notes by what share a round shortened the distance; a kind of noise that gains nothing hands over."""
        gain = torch.where(gain > 1e-4, gain, self.gains.amin(1) - 1)
        self.gains = torch.where(_one_of(smooth), gain[:, None], self.gains)

    def _noise(self, noise: Tensor, smooth: Tensor) -> Tensor:
        """Noise ``(n, m, ...)``, smoothed over the image where ``smooth`` ``(n,)``."""
        if self.smooth == 1:
            return noise
        soft = functional.avg_pool2d(noise.flatten(0, 1), self.smooth, stride=1, padding=self.smooth // 2)
        return torch.where(smooth.view(-1, *[1] * (noise.dim() - 1)), soft.view_as(noise), noise)

    def _labels(self, points: Tensor) -> Tensor:
        """Bool ``(n, m)``: which of the points ``(n, m, ...)`` fool the model, in calls of bounded size."""
        n, m = points.shape[:2]
        parts = points.flatten(0, 1).split(max(n, _ROWS))
        logits = torch.cat([forward(self.model, part) for part in parts])
        hit = fooled(logits, self.y.repeat_interleave(m), targeted=self.threat.targeted)
        return (hit & _keeps(logits, self.within.repeat_interleave(m))).view(n, m)

    def _arc(self, steps: int) -> None:
        """Moves to where the circle over input and point leaves the region that fools, by bisecting the angle."""
        delta = self.point - self.x
        length = column(delta.flatten(1).norm(dim=1).clamp_min(1e-12), delta)
        out = delta / length
        across = self.normal - (self.normal * out).flatten(1).sum(1).view(length.shape) * out
        across = across / column(across.flatten(1).norm(dim=1).clamp_min(1e-12), across)

        def at(angle: Tensor) -> Tensor:
            cos, sin = column(angle.cos(), delta), column(angle.sin(), delta)
            return (self.x + length * cos * (cos * out + sin * across)).clamp(*self.threat.bounds)

        low = torch.zeros(len(delta), dtype=delta.dtype, device=delta.device)
        high = torch.full_like(low, math.pi / 2)
        for _ in range(steps):
            middle = (low + high) / 2
            hit = self._ask(at(middle))
            low, high = torch.where(hit, middle, low), torch.where(hit, high, middle)
        self.point = torch.where(column(low > 0, delta), at(low), self.point)

    def _signed_steps(self, size: Tensor, tries: int) -> None:
        """Moves along the signs of the normal by the largest of ``size`` and its halves that fools the model."""
        sign, moved = self.normal.sign(), torch.zeros_like(size, dtype=torch.bool)
        origin = self.point
        for halvings in range(tries):
            points = (origin + column(size / 2**halvings, origin) * sign).clamp(*self.threat.bounds)
            new = self._ask(points) & ~moved
            self.point = torch.where(column(new, points), points, self.point)
            moved |= new

    def _pull(self, steps: int, nearest: Tensor) -> None:
        """Pulls the points towards the inputs by bisection, down to a distance of ``nearest`` ``(n,)``."""
        size, origin = self._distance(self.point), self.point
        least, most = (nearest / size.clamp_min(1e-12)).clamp_max(1).to(size.dtype), torch.ones_like(size)
        for _ in range(steps):
            middle = (least + most) / 2
            hit = self._ask(self._between(origin, middle, size, self.x))
            least, most = torch.where(hit, least, middle), torch.where(hit, middle, most)
        self.point = torch.where(column(most < 1, origin), self._between(origin, most, size, self.x), origin)

    def _between(self, points: Tensor, share: Tensor, size: Tensor, x: Tensor) -> Tensor:
        """Points at ``share`` of their distance ``size``: along the line, or for linf with their changes clipped."""
        if self.threat.norm == "linf":
            radius = column(share * size, points)
            points = torch.clamp(points, x - radius, x + radius)
        else:
            points = x + column(share, points) * (points - x)
        return points.clamp(*self.threat.bounds)


def _box(side: int, x: Tensor) -> int:
    """Side of the smoothing box: a ninth of the image, at least 3; 1 for what is no image or too small."""
    if x.dim() != 4 or min(x.shape[2:]) < 8:
        return 1
    return side or max(3, min(x.shape[2:]) // 9 | 1)


def _one_of(smooth: Tensor) -> Tensor:
    """Bool ``(n, 2)``: the column that belongs to the noise used."""
    return torch.stack([smooth, ~smooth], dim=1)


def _pick(candidates: tuple[Tensor, Tensor, Tensor], places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some of the candidates: points ``(n, m, ...)``, which fool, labels; ``places`` ``(n, count)`` among m."""
    points, hits, labels = candidates
    every = torch.arange(len(places), device=places.device)[:, None]
    return points[every, places], hits.gather(1, places), labels.gather(1, places)


def _keeps(logits: Tensor, within: Tensor) -> Tensor:
    """Bool ``(n,)``: whether the prediction is the class ``within`` ``(n,)``, or may be any."""
    return (within < 0) | (logits.argmax(1) == within)
