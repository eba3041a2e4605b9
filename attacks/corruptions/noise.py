"""Noise of sensors: normal, Poisson, and salt and pepper."""

from __future__ import annotations

import torch
from torch import Tensor

from ..streams import Streams

_EXACT_BELOW = 5.0


def gaussian_noise(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Adds normal noise of standard deviation ``c[0]``."""
    return x + c[0] * streams.normal(x.shape[1:])


def shot_noise(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Replaces each value by a count of photons, ``c[0]`` on average at full brightness."""
    return poisson(x * c[0], streams) / c[0]


def impulse_noise(x: Tensor, c: tuple[float, ...], streams: Streams) -> Tensor:
    """Sets a share ``c[0]`` of the values to black or white."""
    shape = x.shape[1:]
    hit, white = streams.uniform(shape) < c[0], streams.signs(shape) > 0
    return torch.where(hit, white.to(x.dtype), x)


def poisson(rate: Tensor, streams: Streams) -> Tensor:
    """Poisson counts in the shape of ``rate`` ``(n, ...)``.

    Exact for rates below 5; above, a normal draw with the Cornish-Fisher correction of third order, rounded.
    """
    shape = rate.shape[1:]
    z, u = streams.normal(shape), streams.uniform(shape)
    root = rate.clamp_min(_EXACT_BELOW).sqrt()
    counts = (rate + root * z + (z**2 - 1) / 6 + (z - z**3) / (72 * root)).round().clamp_min(0)
    few = (rate < _EXACT_BELOW) & (rate > 0)
    counts = torch.where(rate > 0, counts, 0.0)
    counts[few] = _inverted(rate[few], u[few])
    return counts


def _inverted(rate: Tensor, u: Tensor) -> Tensor:
    """The smallest count whose cumulative probability exceeds ``u``, for rates ``(m,)`` below 5."""
    count, probability = torch.zeros_like(rate), torch.exp(-rate)
    cumulative = probability.clone()
    for k in range(1, 30):  # from 30 on the probability at rate 5 is below 1e-13
        count += u >= cumulative
        probability = probability * rate / k
        cumulative = cumulative + probability
    return count
