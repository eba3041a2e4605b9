"""Categories that are numbers in order, such as bins of confidence: their chart is a line, not rows of dots."""

from __future__ import annotations

import itertools
import math

from .record import Chart, Line

_FEWEST = 6


def as_line(chart: Chart) -> Chart:
    """A line chart in place of several series of bars over ascending numbers; any other chart as it is."""
    places = [_number(name) for name in chart.categories]
    ascending = all(a < b for a, b in itertools.pairwise(places)) and not any(map(math.isnan, places))
    if chart.style != "bar" or len(chart.lines) < 2 or len(places) < _FEWEST or not ascending:
        return chart
    lines = tuple(_moved(line, places) for line in chart.lines)
    return chart.model_copy(update={"style": "line", "categories": (), "lines": lines, "x_range": None})


def _moved(line: Line, places: list[float]) -> Line:
    x = tuple(places[int(position)] for position in line.x)
    return line.model_copy(update={"x": x})


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
