"""Charts as inline SVG: no script, colours from the style sheet, a title and a description for screen readers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from .axes import Axis, fit
from .category_charts import category_chart
from .frames import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, axis_labels, grid, svg
from .marks import SERIES, bounded, dash, marker, path_data, points, px, runs, series, steps, thin
from .point_labels import point_labels
from .record import Chart, Line


def chart_svg(chart: Chart, uid: str, colours: Sequence[int] = ()) -> Markup:
    """The chart as one ``<svg>``.

    Args:
        uid: unique in the page and safe in an id.
        colours: the series of the style sheet that each line takes; the first ones when left out.
    """
    colours = colours or range(len(chart.lines))
    if chart.style == "bar" and chart.categories:
        return category_chart(chart, uid, colours)
    frame = _frame(chart)
    parts = [*grid(frame), *axis_labels(chart.x_label, chart.y_label, frame)]
    if chart.diagonal:
        parts.append(_diagonal(frame))
    coloured = list(zip(colours, chart.lines, strict=True))
    # All bands first, so that no band hides a line.
    if chart.style in ("line", "step"):
        parts += [band for index, line in coloured for band in _band(line, index, frame, chart.style)]
    draw = {"line": _line, "step": _line, "scatter": _scatter, "bar": _numeric_bars}[chart.style]
    parts += [part for index, line in coloured for part in draw(line, index, frame, chart)]
    if chart.style == "scatter":
        parts += point_labels(chart, colours, frame)
    return svg(parts, chart, uid, HEIGHT)


def legend_key(chart: Chart, place: int, colours: Sequence[int] = ()) -> Markup:
    """A swatch for the legend: the line, marker or bar of the line at ``place``."""
    line, index = chart.lines[place], colours[place] if colours else place
    dots = chart.style == "scatter" or (chart.style == "bar" and chart.categories and len(chart.lines) > 1)
    if dots:
        inside = Markup('<path class="dot" d="M14,7{}"/>').format(marker(index))
    elif chart.style == "bar":
        inside = Markup('<rect class="bar" x="8" y="2" width="12" height="10"/>')
    else:
        inside = Markup('<path class="line" d="M1,7H27"{}/>').format(dash(index, line))
    return Markup('<svg class="key {}" viewBox="0 0 28 14" aria-hidden="true">{}</svg>').format(
        series(index, line), inside
    )


def _frame(chart: Chart) -> Frame:
    raw = [v for line in chart.lines for v in (*line.x, *line.x_low, *line.x_high)]
    ys = [v for line in chart.lines for v in (*line.y, *line.low, *line.high)]
    bars = chart.style == "bar"
    half = _bar_width(chart) / 2 if bars else 0
    xs = [edge for v in raw if v is not None and math.isfinite(v) for edge in (v - half, v + half)]
    x_range = (min(xs), max(xs)) if bars and xs and not chart.x_range else chart.x_range
    x = fit(xs, chart.x_scale, x_range, (LEFT, WIDTH - RIGHT))
    y = fit(ys, chart.y_scale, chart.y_range, (HEIGHT - BOTTOM, TOP), from_zero=bars)
    return Frame(x, y)


def _diagonal(frame: Frame) -> Markup:
    """The line y = x, which on mixed scales is a curve."""
    low, high = max(frame.x.low, frame.y.low), min(frame.x.high, frame.y.high)
    if low >= high:
        return Markup("")
    inner = Axis(frame.x.scale, low, high, 0, 1)
    log = inner.scale == "log"
    values = [low * (high / low) ** (i / 32) if log else low + (high - low) * i / 32 for i in range(33)]
    pixels = [(frame.x(value), frame.y(value)) for value in values]
    return Markup('<path class="diagonal" d="{}"/>').format(path_data(pixels))


def _band(line: Line, index: int, frame: Frame, style: str) -> Iterator[Markup]:
    rows = [(frame.x(x), frame.y(low), frame.y(high)) for x, low, high in bounded(line.x, line.low, line.high)]
    if len(rows) < 2:
        return
    lows, highs = [(x, low) for x, low, _ in rows], [(x, high) for x, _, high in rows]
    if style == "step":
        lows, highs = steps(lows), steps(highs)
    outline = path_data(thin(highs)) + path_data(thin(lows)[::-1]).replace("M", "L", 1) + "Z"
    yield Markup('<path class="band s{}" d="{}"/>').format(index % SERIES, outline)


def _line(line: Line, index: int, frame: Frame, chart: Chart) -> Iterator[Markup]:
    data = ""
    for run in runs(line, frame.x):
        pixels = [(frame.x(x), frame.y(y)) for x, y in run]
        data += path_data(thin(steps(pixels) if chart.style == "step" else pixels))
        if len(pixels) == 1:
            data += "h.01"
    yield Markup('<path class="line {}" d="{}"{}/>').format(series(index, line), data, dash(index, line))
    if chart.style == "line" and len(line.x) <= 24 and not line.dashed:
        dots = "".join(f"M{px(frame.x(x))},{px(frame.y(y))}{marker(index)}" for x, y in points(line))
        yield Markup('<path class="dot s{}" d="{}"/>').format(index % SERIES, dots)


def _scatter(line: Line, index: int, frame: Frame, chart: Chart) -> Iterator[Markup]:
    del chart
    bars = [*_vertical_errors(line, frame), *_horizontal_errors(line, frame)]
    if bars:
        yield Markup('<path class="whisker s{}" d="{}"/>').format(index % SERIES, "".join(bars))
    places = dict.fromkeys((px(frame.x(x)), px(frame.y(y))) for x, y in points(line))
    dots = "".join(f"M{x},{y}{marker(index)}" for x, y in places)
    yield Markup('<path class="dot s{}" d="{}"/>').format(index % SERIES, dots)


def _vertical_errors(line: Line, frame: Frame) -> Iterator[str]:
    for x, low, high in bounded(line.x, line.low, line.high):
        yield f"M{px(frame.x(x))},{px(frame.y(low))}V{px(frame.y(high))}"


def _horizontal_errors(line: Line, frame: Frame) -> Iterator[str]:
    for y, low, high in bounded(line.y, line.x_low, line.x_high):
        yield f"M{px(frame.x(low))},{px(frame.y(y))}H{px(frame.x(high))}"


def _bar_width(chart: Chart) -> float:
    """The closest spacing of bars along x, in data units."""
    xs = sorted({x for line in chart.lines for x in line.x if math.isfinite(x)})
    return min((b - a for a, b in itertools.pairwise(xs)), default=1.0)


def _numeric_bars(line: Line, index: int, frame: Frame, chart: Chart) -> Iterator[Markup]:
    """Bars that stand on the x axis, side by side when there are several series."""
    half, count, place = _bar_width(chart) / 2, len(chart.lines), chart.lines.index(line)
    floor = frame.y(0.0 if chart.y_scale == "linear" else frame.y.low)
    for x, y in points(line):
        left, right = frame.x(x - half), frame.x(x + half)
        width = max((right - left) * 0.86 / count, 0.5)
        start, top = left + (right - left) * 0.07 + place * width, frame.y(y)
        yield Markup('<rect class="bar s{}" x="{}" y="{}" width="{}" height="{}"/>').format(
            index % SERIES, px(start), px(min(top, floor)), px(width), px(abs(floor - top))
        )
    whiskers = "".join(_vertical_errors(line, frame)) if count == 1 else ""
    if whiskers:
        yield Markup('<path class="whisker ink" d="{}"/>').format(whiskers)
