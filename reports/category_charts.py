"""Charts over categories: one row each, so that long names stay readable."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from .axes import Axis, fit
from .escaping import shorten, visible
from .frames import BOTTOM, RIGHT, TOP, WIDTH, Frame, axis_labels, svg, vertical_grid
from .marks import SERIES, bounded, marker, points, px
from .record import Chart, Line

MOST_CATEGORIES = 40
"""More are not drawn: those with the lowest values of the first series are."""

_LABELS_WIDTH, _CHARACTERS, _MOST_CHARACTERS = 132.0, 18, 30
"""Room for the names of most charts; longer ones get more, so that what tells them apart is not cut off."""


def category_chart(chart: Chart, uid: str, colours: Sequence[int]) -> Markup:
    """A bar in each row for one series, dots with whiskers for several."""
    chart = _lowest(chart) if len(chart.categories) > MOST_CATEGORIES else chart
    count = len(chart.lines)
    row = max(18.0, 8.0 * count + 10)
    bottom = TOP + row * len(chart.categories)
    values = [v for line in chart.lines for v in (*line.y, *line.low, *line.high)]
    longest = min(max(map(len, chart.categories), default=0), _MOST_CHARACTERS)
    left = _LABELS_WIDTH + 6.0 * max(0, longest - _CHARACTERS)
    x = fit(values, chart.y_scale, chart.y_range, (left, WIDTH - RIGHT), from_zero=count == 1)
    frame = Frame(x, Axis("linear", 0, 1, bottom, TOP), left=left, bottom=bottom)
    labels = _category_labels(chart.categories, row, left)
    parts = [*vertical_grid(frame), *labels, *axis_labels(chart.y_label, "", frame)]
    for place, (index, line) in enumerate(zip(colours, chart.lines, strict=True)):
        top = TOP + 4 + (row - 8) / count * (place + 0.5)
        parts += _bars(line, index, top, row, frame) if count == 1 else _dots(line, index, top, row, frame)
    return svg(parts, chart, uid, bottom + BOTTOM)


def _lowest(chart: Chart) -> Chart:
    """The chart with its forty lowest categories, in their old order."""
    values = dict(points(chart.lines[0])) if chart.lines else {}
    kept = sorted(sorted(range(len(chart.categories)), key=lambda i: values.get(i, math.inf))[:MOST_CATEGORIES])
    lines = tuple(_only(line, {float(old): float(new) for new, old in enumerate(kept)}) for line in chart.lines)
    return chart.model_copy(update={"categories": tuple(chart.categories[i] for i in kept), "lines": lines})


def _only(line: Line, places: Mapping[float, float]) -> Line:
    """The line's points at the old places, moved to the new ones."""
    rows = itertools.zip_longest(line.x, line.y, line.low, line.high)
    kept = [(places[x], y, low, high) for x, y, low, high in rows if x in places]
    x, y, low, high = zip(*kept, strict=True) if kept else ((), (), (), ())
    return line.model_copy(update={"x": x, "y": y, "low": low, "high": high})


def _category_labels(categories: Sequence[str], row: float, left: float) -> Iterator[Markup]:
    for index, name in enumerate(categories):
        yield Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(
            px(left - 8), px(TOP + row * (index + 0.5) + 4), visible(shorten(name, _MOST_CHARACTERS))
        )


def _bars(line: Line, index: int, top: float, row: float, frame: Frame) -> Iterator[Markup]:
    zero = frame.left if frame.x.scale == "log" else frame.x(0.0)
    for position, value in points(line):
        x = frame.x(value)
        yield Markup('<rect class="bar s{}" x="{}" y="{}" width="{}" height="10"/>').format(
            index % SERIES, px(min(x, zero)), px(top + row * position - 5), px(max(abs(x - zero), 0.5))
        )
    yield from _whiskers(line, "ink", top, row, frame)


def _dots(line: Line, index: int, top: float, row: float, frame: Frame) -> Iterator[Markup]:
    yield from _whiskers(line, f"s{index % SERIES}", top, row, frame)
    for position, value in points(line):
        yield Markup('<path class="dot s{}" d="M{},{}{}"/>').format(
            index % SERIES, px(frame.x(value)), px(top + row * position), marker(index, 2.8)
        )


def _whiskers(line: Line, colour: str, top: float, row: float, frame: Frame) -> Iterator[Markup]:
    for position, low, high in bounded(line.x, line.low, line.high):
        yield Markup('<path class="whisker {}" d="M{},{}H{}"/>').format(
            colour, px(frame.x(low)), px(top + row * position), px(frame.x(high))
        )
