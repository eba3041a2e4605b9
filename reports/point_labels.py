"""Names beside the points of a scatter chart, placed where they cover nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from .escaping import shorten, visible
from .frames import WIDTH, Frame
from .marks import SERIES, Point, bounded, points, px
from .record import Chart, Line

_Box = tuple[float, float, float, float]


def point_labels(chart: Chart, colours: Sequence[int], frame: Frame) -> list[Markup]:
    """A label for each series that is one point; none when any series has more."""
    if not chart.lines or any(len(line.x) != 1 for line in chart.lines):
        return []
    taken = [box for line in chart.lines for box in _mark_boxes(line, frame)]
    labels = []
    for index, line in zip(colours, chart.lines, strict=True):
        for x, y in points(line):
            name = visible(shorten(line.name, 22))
            box = _free_box(list(_places(line, (frame.x(x), frame.y(y)), 6.6 * len(name), frame)), taken, frame)
            taken.append(box)
            label = Markup('<text class="point s{}" x="{}" y="{}">{}</text>')
            labels.append(label.format(index % SERIES, px(box[0]), px(box[3] - 3), name))
    return labels


def _mark_boxes(line: Line, frame: Frame) -> Iterator[_Box]:
    """What the points and whiskers of a line cover."""
    for x, y in points(line):
        yield frame.x(x) - 6, frame.y(y) - 6, frame.x(x) + 6, frame.y(y) + 6
    for x, low, high in bounded(line.x, line.low, line.high):
        yield frame.x(x) - 2, frame.y(high), frame.x(x) + 2, frame.y(low)
    for y, low, high in bounded(line.y, line.x_low, line.x_high):
        yield frame.x(low), frame.y(y) - 2, frame.x(high), frame.y(y) + 2


def _places(line: Line, point: Point, width: float, frame: Frame) -> Iterator[_Box]:
    """Where a label may stand, best first: beside the point above its whiskers, at their ends, then further off."""
    x, y = point
    left = min([x - 6, *(frame.x(low) for _, low, _ in bounded(line.y, line.x_low, line.x_high))]) - 4 - width
    right = max([x + 6, *(frame.x(high) for *_, high in bounded(line.y, line.x_low, line.x_high))]) + 4
    near = [
        (x + 6, y - 18),
        (right, y - 7),
        (left, y - 7),
        (x - 6 - width, y - 18),
        (x + 6, y + 5),
        (x - 6 - width, y + 5),
    ]
    far = [(start, y + sign * 13 * reach - 7) for reach in range(2, 6) for sign in (-1, 1) for start in (x + 6, left)]
    for start, top in (*near, *far):
        yield start, top, start + width, top + 13


def _free_box(places: list[_Box], taken: list[_Box], frame: Frame) -> _Box:
    """The first place that is inside the plot and covers nothing; the first inside when none is free."""
    inside = [b for b in places if b[0] >= frame.left and b[2] <= WIDTH and b[1] >= 0 and b[3] <= frame.bottom]
    return next((b for b in inside if not any(_overlap(b, other) for other in taken)), (inside or places)[0])


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
