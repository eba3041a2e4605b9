"""Where a label-only attack may begin: points that belong to the sample alone, never to others of its batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..streams import Streams
from ..threat import Threat

TRIES = 24
"""Points tried for each sample besides those that the user gives."""


def start_points(x: Tensor, bounds: tuple[float, float], streams: Streams, given: Tensor | None) -> Tensor:
    """Candidates ``(n, m, ...)``: noise, corners of the box, coarse noise, flat inputs, the negative, those given.

    Uniform noise alone is often taken for one and the same class; corners reach further, coarse noise and flat
    inputs look different to a network, and the negative keeps the shape that the class lacks.
    """
    low, high = bounds
    shape = x.shape[1:]
    noise = streams.uniform((TRIES - 4, *shape)).to(x)
    noise[:, 6:14] = noise[:, 6:14].round()
    if x.dim() == 4:
        noise[:, 14:] = _coarse(noise[:, 14:].round(), max(2, min(shape[1:]) // 4))
    flat = torch.tensor([0.0, 0.5, 1.0], dtype=x.dtype, device=x.device)
    flat = flat.view(1, 3, *[1] * len(shape)).expand(len(x), 3, *shape)
    points = low + (high - low) * torch.cat([noise, flat], dim=1)
    points = torch.cat([points, (low + high - x)[:, None]], dim=1)
    if given is not None:
        points = torch.cat([points, given.to(x).expand(len(x), *given.shape)], dim=1)
    return points.clamp(low, high)


def beyond(x: Tensor, normals: Tensor, bounds: tuple[float, float], streams: Streams, count: int) -> Tensor:
    """Candidates ``(n, count, ...)`` far from ``x``, none further along any of the ``normals`` ``(n, m, ...)``."""
    units = functional.normalize(normals.flatten(2), dim=2)
    origin = x.flatten(1)[:, None]
    moved = 2 * streams.normal((count, origin.shape[2])).to(x)
    for _ in range(4):  # the bounds bring back a little of what was taken out
        for unit in units.unbind(1):
            along = ((origin + moved).clamp(*bounds) - origin) @ unit[:, :, None]
            moved = moved - along.clamp_min(0) * unit[:, None]
    return (origin + moved).clamp(*bounds).view(len(x), count, *x.shape[1:])


def ranked(x: Tensor, points: Tensor, hits: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    """Places ``(n, m)`` of candidates: those that fool by distance, one of each class before a second of any.

    Regions of different classes have boundaries of their own, each with a closest point of its own.

    Args:
        x: ``(n, ...)``.
        points: candidates ``(n, m, ...)``.
        hits: bool ``(n, m)``, which of them fool.
        labels: int64 ``(n, m)``, what the model takes them for.
    """
    n, m = hits.shape
    away = threat.distance(points.flatten(0, 1), x.repeat_interleave(m, dim=0)).view(n, m)
    order = away.masked_fill(~hits, float("inf")).argsort(dim=1, stable=True)
    label = labels.gather(1, order)
    alike = (label[:, :, None] == label[:, None, :]) & hits.gather(1, order)[:, None, :]
    before = alike.tril(-1).sum(2)  # how many closer ones are taken for the same class
    place = torch.arange(m, device=x.device)
    return order.gather(1, (before * m + place + ~hits.gather(1, order) * m * m).argsort(dim=1))


def _coarse(noise: Tensor, blocks: int) -> Tensor:
    """Noise ``(n, m, c, h, w)`` made of ``blocks`` x ``blocks`` tiles, each of one value."""
    h, w = noise.shape[3:]
    rows = torch.arange(h, device=noise.device) * blocks // h * h // blocks
    columns = torch.arange(w, device=noise.device) * blocks // w * w // blocks
    return noise[:, :, :, rows][..., columns]
