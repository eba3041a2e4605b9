"""From the numbers of a line to SVG paths, and how one series is told from another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from .axes import Axis
from .record import Line

SERIES = 8
"""How many distinct series the style sheet has; further ones begin again."""

_MARKERS = (
    "m-{r},0a{r},{r} 0 1,0 {d},0a{r},{r} 0 1,0 -{d},0z",
    "m-{r},-{r}h{d}v{d}h-{d}z",
    "m0,-{d}l{d},{t}h-{q}z",
    "m0,-{d}l{d},{d}l-{d},{d}l-{d},-{d}z",
    "m0,{d}l{d},-{t}h-{q}z",
)
_DASHES = {4: "9 2", 5: "2 2", 6: "9 2 2 2", 7: "1 3"}
_REFERENCE_DASHES = ("5 4", "2 3", "9 3 2 3")


Point = tuple[float, float]


def points(line: Line) -> Iterator[Point]:
    """The points of a line that can be drawn."""
    for x, y in zip(line.x, line.y, strict=False):
        if y is not None and math.isfinite(x) and math.isfinite(y):
            yield x, y


def bounded(
    positions: Sequence[float | None], lows: Sequence[float | None], highs: Sequence[float | None]
) -> Iterator[tuple[float, float, float]]:
    """Positions with both their bounds, where all three are numbers."""
    for triple in zip(positions, lows, highs, strict=False):
        position, low, high = (math.nan if value is None else value for value in triple)
        if math.isfinite(position) and math.isfinite(low) and math.isfinite(high):
            yield position, low, high


def runs(line: Line, axis: Axis) -> Iterator[list[Point]]:
    """Stretches of points with nothing missing between them; a log axis has no place for zero."""
    run: list[Point] = []
    for x, y in zip(line.x, line.y, strict=False):
        if y is not None and math.isfinite(x) and math.isfinite(y) and (axis.scale == "linear" or x > 0):
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def steps(pixels: Sequence[Point]) -> list[Point]:
    """The corners of a staircase that keeps each y until the next x."""
    corners = list(pixels[:1])
    for (_, before), (x, y) in itertools.pairwise(pixels):
        corners += [(x, before), (x, y)]
    return corners


def thin(pixels: Sequence[Point], apart: float = 0.4) -> list[Point]:
    """Leaves out points that fall on the one before (curves of thousands of points); keeps the ends."""
    kept = list(pixels[:1])
    for x, y in pixels[1:]:
        if abs(x - kept[-1][0]) + abs(y - kept[-1][1]) >= apart:
            kept.append((x, y))
    return [*kept, pixels[-1]] if pixels and kept[-1] != pixels[-1] else kept


def path_data(pixels: Sequence[Point]) -> str:
    """The ``d`` of a path through the points."""
    return "M" + "L".join(f"{px(x)},{px(y)}" for x, y in pixels) if pixels else ""


def marker(index: int, r: float = 3.2) -> str:
    """A closed outline around the current point, of a shape that goes with series ``index``."""
    kind = index % len(_MARKERS)
    if kind < 2:
        r = r * (1, 0.9)[kind]
        return _MARKERS[kind].format(r=f"{r:g}", d=f"{2 * r:g}")
    reach = r * 1.3
    return _MARKERS[kind].format(d=f"{reach:g}", t=f"{reach * 1.8:g}", q=f"{reach * 2:g}")


def dash(index: int, line: Line) -> Markup:
    """The attribute that dashes series ``index``, or nothing."""
    dashes = _REFERENCE_DASHES[index % 3] if line.dashed else _DASHES.get(index % SERIES)
    return Markup(' stroke-dasharray="{}"').format(dashes) if dashes else Markup("")


def series(index: int, line: Line) -> str:
    """The class that gives colour: dashed lines are references and stay grey."""
    return "ref" if line.dashed else f"s{index % SERIES}"


def px(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
