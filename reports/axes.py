"""Axes of charts: from data to pixels, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Scale = Literal["linear", "log"]
_LARGEST, _SMALLEST = 1e150, 1e-150
"""Beyond these, spans and steps would overflow."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps ``low..high`` to ``start..end`` (pixels; ``end`` may be the smaller). Values outside are clamped."""

    scale: Scale
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self._map(self.low), self._map(self.high)
        share = (self._map(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Round values inside the range, each with its label."""
        if self.scale == "log":
            return [(value, tick_label(value, abs(value))) for value in log_ticks(self.low, self.high)]
        values = linear_ticks(self.low, self.high, count)
        step = values[1] - values[0] if len(values) > 1 else max(map(abs, values), default=1.0)
        return [(value, tick_label(value, step)) for value in values]

    def _map(self, value: float) -> float:
        return math.log10(value) if self.scale == "log" else value


def fit(
    values: Iterable[float | None],
    scale: Scale,
    given: tuple[float, float] | None,
    pixels: tuple[float, float],
    from_zero: bool = False,
) -> Axis:
    """An axis over ``given``, or over the finite values (positive ones on a log scale) with a little room.

    ``from_zero`` puts zero on a linear axis: bars stand on it.
    """
    finite = [v for v in values if v is not None and abs(v) < _LARGEST and (scale == "linear" or v > _SMALLEST)]
    if given and _usable(given, scale):
        low, high = min(given), max(given)
    elif scale == "log":
        low, high = _log_range(finite)
    else:
        low, high = _linear_range([*finite, 0.0] if from_zero else finite)
    return Axis(scale, low, high, *pixels)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten in ``low..high``."""
    step = _round_step((high - low) / max(count, 1))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 if abs(step) > 1e-9 else index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in ``low..high``, thinned to seven at most; 1, 2 and 5 times them when there are fewer than two."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 1:
        return [10.0**power for power in range(first, last + 1, 1 + (last - first) // 7)]
    fine = [m * 10.0**power for power in range(first - 1, last + 1) for m in (1, 2, 5)]
    inside = [value for value in fine if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    return inside or [low, high]


def tick_label(value: float, step: float) -> str:
    """As many decimals as the step between ticks needs; powers of ten for the very small and large."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step or 1.0) + 1e-9))
    return f"{value:,.{decimals}f}".replace("-", "−")


def _usable(given: tuple[float, float], scale: Scale) -> bool:
    low, high = min(given), max(given)
    return max(abs(low), abs(high)) < _LARGEST and low < high and (scale == "linear" or low > _SMALLEST)


def _linear_range(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) / 2 or 0.5
        return low - room, high + room
    room = (high - low) * 0.05
    return (0.0 if 0 <= low <= room else low - room), (0.0 if -room <= high <= 0 else high + room)


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 1e-3, 1.0
    low, high = min(values), max(values)
    return (low / 3, high * 3) if low == high else (low, high)


def _round_step(raw: float) -> float:
    """1, 2 or 5 times a power of ten, the one nearest to ``raw`` by ratio."""
    power = 10.0 ** math.floor(math.log10(raw))
    return min((m * power for m in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / raw)))
