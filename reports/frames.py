"""The frame of a chart: plot area, grid, axis labels, and the ``<svg>`` around it all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .axes import Axis
from .escaping import shorten, visible
from .marks import px
from .record import Chart

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 46
"""Margins around the plot area, in pixels."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a chart is drawn: its axes and the plot area's edges in pixels."""

    x: Axis
    y: Axis
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def vertical_grid(frame: Frame) -> Iterator[Markup]:
    """Grid lines and labels at the ticks of x."""
    top, bottom, label_y = px(frame.top), px(frame.bottom), px(frame.bottom + 16)
    for value, label in frame.x.ticks():
        x = px(frame.x(value))
        yield Markup('<path class="grid" d="M{},{}V{}"/>').format(x, top, bottom)
        yield Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format(x, label_y, label)


def grid(frame: Frame) -> Iterator[Markup]:
    """Grid lines and labels at the ticks of both axes."""
    yield from vertical_grid(frame)
    for value, label in frame.y.ticks():
        y = frame.y(value)
        yield Markup('<path class="grid" d="M{},{}H{}"/>').format(px(frame.left), px(y), px(frame.right))
        yield Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(px(frame.left - 6), px(y + 4), label)


def axis_labels(x_label: str, y_label: str, frame: Frame) -> Iterator[Markup]:
    """What the axes mean, below and to the left."""
    middle_x, middle_y = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
    yield Markup('<text class="axis mid" x="{}" y="{}">{}</text>').format(
        px(middle_x), px(frame.bottom + 36), visible(shorten(x_label, 60))
    )
    if y_label:
        yield Markup('<text class="axis mid" transform="translate(13,{}) rotate(-90)">{}</text>').format(
            px(middle_y), visible(shorten(y_label, 40))
        )


def svg(parts: Sequence[Markup], chart: Chart, uid: str, height: float) -> Markup:
    """The parts inside an ``<svg>`` with the chart's title and description."""
    title, description = visible(chart.title), visible(_description(chart))
    return Markup(
        '<svg class="chart{many}" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{id}-t {id}-d">'
        '<title id="{id}-t">{title}</title><desc id="{id}-d">{description}</desc>{parts}</svg>'
    ).format(
        many=" many" if len(chart.lines) > 3 else "",
        w=WIDTH,
        h=f"{height:g}",
        id=uid,
        title=title,
        description=description,
        parts=Markup("").join(parts),
    )


def _description(chart: Chart) -> str:
    names = ", ".join(line.name for line in chart.lines if line.name)
    drawn = f"{chart.y_label} against {chart.x_label}" + (f" for {names}" if names else "")
    return f"{chart.caption} {drawn}. The numbers are in the table below the chart.".strip()
