"""Charts and pictures: ticks are round, marks stand where the numbers say, colours mean what the caption says."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from auditorch.reports.axes import Axis, fit, linear_ticks, log_ticks
from auditorch.reports.charts import chart_svg
from auditorch.reports.comparison import overlay
from auditorch.reports.pictures import data_uri, difference_pixels, heat_pixels, image_pixels, png, strongest
from auditorch.reports.record import Chart, Line
from auditorch.reports.tables import cell_texts, chart_table
from PIL import Image

from .pages import Element, read_page


def chart(**fields: object) -> Chart:
    return Chart.model_validate({"id": "c", "title": "t", "x_label": "x", "y_label": "y", "lines": (), **fields})


def drawn(of: Chart) -> Element:
    return read_page(chart_svg(of, "u")).all("svg")[0]


def paths(of: Chart, name: str) -> list[str]:
    marks = drawn(of).all("path")
    return [e.attributes["d"] for e in marks if name in e.attributes["class"].split()]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0.0628, [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
        (0, 681, [0, 100, 200, 300, 400, 500, 600]),
    ],
)
def test_linear_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(ticks)


def test_log_ticks_are_powers_of_ten_or_finer() -> None:
    assert log_ticks(1e-3, 1) == pytest.approx([1e-3, 1e-2, 1e-1, 1])
    assert log_ticks(2, 30) == pytest.approx([2, 5, 10, 20])
    assert len(log_ticks(1e-30, 1)) <= 8


def test_tick_labels_are_short_and_exact() -> None:
    assert [label for _, label in Axis("log", 1e-5, 1, 0, 1).ticks()] == ["1e−5", "0.0001", "0.001", "0.01", "0.1", "1"]
    assert [label for _, label in Axis("linear", 0, 1, 0, 1).ticks()] == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]


@pytest.mark.parametrize("values", [[], [5.0], [float("nan")], [1e308, -1e308], [-1.0], [0.0]])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_axes_take_any_values(values: list[float], scale: str) -> None:
    axis = fit(values, "log" if scale == "log" else "linear", None, (0, 100))
    assert axis.low < axis.high
    assert axis.ticks()
    assert 0 <= axis(values[0] if values and values[0] == values[0] else 0.5) <= 100


def test_line_passes_through_its_points() -> None:
    [path] = paths(chart(x_range=(0, 1), y_range=(0, 1), lines=(Line(name="", x=(0, 0.5, 1), y=(0, 1, 0.5)),)), "line")
    assert points(path) == [(56, 254), (261, 12), (466, 133)]


def test_log_axis_places_decades_evenly() -> None:
    line = Line(name="", x=(0, 0.01, 0.1, 1), y=(0.01, 0.01, 0.1, 1))
    [path] = paths(chart(x_scale="log", y_scale="log", x_range=(0.01, 1), y_range=(0.01, 1), lines=(line,)), "line")
    assert points(path) == [(56, 254), (261, 133), (466, 12)]


def test_gaps_stay_gaps() -> None:
    [path] = paths(chart(lines=(Line(name="", x=(0, 1, 2, 3, 4), y=(1, 2, None, 2, 1)),)), "line")
    assert path.count("M") == 2


def test_step_keeps_its_height_until_the_next_x() -> None:
    line = Line(name="", x=(0, 1), y=(0, 1))
    [path] = paths(chart(style="step", x_range=(0, 1), y_range=(0, 1), lines=(line,)), "line")
    assert points(path) == [(56, 254), (466, 254), (466, 12)]


def test_band_spans_low_to_high() -> None:
    line = Line(name="", x=(0, 1), y=(0.5, 0.5), low=(0, 0), high=(1, 1))
    [band] = paths(chart(x_range=(0, 1), y_range=(0, 1), lines=(line,)), "band")
    assert points(band) == [(56, 12), (466, 12), (466, 254), (56, 254)]


def test_bars_stand_on_zero() -> None:
    bars = chart(style="bar", y_range=(-1, 1), lines=(Line(name="", x=(0, 1), y=(1, -1)),))
    rects = [e.attributes for e in drawn(bars).all("rect")]
    assert [(r["y"], r["height"]) for r in rects] == [("12", "121"), ("133", "121")]


def test_category_bars_are_as_long_as_their_values() -> None:
    line = Line(name="", x=(0, 1), y=(0.5, 1.0), low=(0.4, 0.9), high=(0.6, 1.0))
    bars = chart(style="bar", categories=("a", "b"), y_range=(0, 1), lines=(line,))
    widths = [float(e.attributes["width"]) for e in drawn(bars).all("rect")]
    assert widths[1] == pytest.approx(2 * widths[0])
    assert len(paths(bars, "whisker")) == 2


def test_of_many_categories_the_lowest_are_drawn() -> None:
    values = tuple(float(i % 50) for i in range(100))
    line = Line(name="", x=tuple(range(100)), y=values, low=values, high=tuple(v + 1 for v in values))
    many = chart(style="bar", categories=tuple(f"class {i}" for i in range(100)), lines=(line,))
    labels = [e.text() for e in drawn(many).all("text") if e.text().startswith("class")]
    assert labels == [f"class {i}" for i in (*range(20), *range(50, 70))]
    assert len(drawn(many).all("rect")) == 40


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    x = tuple(i / 20_000 for i in range(20_001))
    [path] = paths(chart(x_range=(0, 1), y_range=(0, 1), lines=(Line(name="", x=x, y=x),)), "line")
    assert len(points(path)) < 2000
    assert points(path)[-1] == (466, 12)


def test_overlay_names_lines_by_variant_and_keeps_references_once() -> None:
    lines = (Line(name="loss", x=(0, 1), y=(0, 1)), Line(name="chance", x=(0, 1), y=(0.1, 0.1), dashed=True))
    both = overlay([(0, "Base", chart(lines=lines, x_range=(0, 1))), (2, "DP", chart(lines=lines, x_range=(0, 2)))])
    assert both is not None
    assert [line.name for line in both.chart.lines] == ["Base", "DP", "chance"]
    assert both.colours[:2] == (0, 2)
    assert both.chart.x_range == (0, 2)


def test_overlay_declines_what_would_be_unreadable() -> None:
    two = chart(lines=(Line(name="a", x=(0,), y=(0,)), Line(name="b", x=(0,), y=(0,))))
    assert overlay([(0, "Base", two), (1, "DP", two)]) is None
    line = Line(name="a", x=(0,), y=(0,))
    assert overlay([(0, "Base", chart(lines=(line,))), (1, "DP", chart(style="step", lines=(line,)))]) is None


def test_point_labels_cover_neither_marks_nor_each_other() -> None:
    lines = tuple(
        Line(name=f"variant {i}", x=(80 + i,), y=(10 + i / 4,), low=(9,), high=(12,), x_low=(78 + i,), x_high=(82 + i,))
        for i in range(4)
    )
    crowd = drawn(chart(style="scatter", x_range=(70, 95), y_range=(0, 60), lines=lines))
    labels = [e for e in crowd.all("text") if "point" in e.attributes["class"]]
    boxes = [
        (float(e.attributes["x"]), float(e.attributes["y"]) - 10, float(e.attributes["x"]) + 6.6 * len(e.text()))
        for e in labels
    ]
    assert len(boxes) == 4
    apart = [a[2] <= b[0] or b[2] <= a[0] or abs(a[1] - b[1]) >= 13 for a in boxes for b in boxes if a is not b]
    assert all(apart)


def test_table_equivalent_has_the_numbers() -> None:
    line = Line(name="a", x=(0, 1), y=(0.5, None), low=(0.4, None), high=(0.6, None))
    table = chart_table(chart(lines=(line, Line(name="b", x=(0, 1), y=(1, 2)))))
    assert table.columns == ("x", "a", "b")
    assert table.rows == ((0, "0.5 (0.4–0.6)", 1), (1, None, 2))


def test_table_of_lines_with_different_x_is_long() -> None:
    table = chart_table(chart(lines=(Line(name="a", x=(0,), y=(1,)), Line(name="b", x=(5,), y=(2,)))))
    assert table.columns == ("series", "x", "y")
    assert table.rows == (("a", 0, 1), ("b", 5, 2))


def test_table_of_a_long_curve_is_thinned_and_says_so() -> None:
    x = tuple(float(i) for i in range(1000))
    table = chart_table(chart(lines=(Line(name="a", x=x, y=x),)))
    assert len(table.rows) == 40
    assert table.rows[0][0] == 0
    assert table.rows[-1][0] == 999
    assert "audit.json" in table.caption


def test_columns_share_their_decimals() -> None:
    table = chart_table(chart(lines=(Line(name="a", x=(0, 1, 2), y=(0.9, 0.913, 1.0)),)))
    assert [row[1] for row in cell_texts(table)] == ["0.900", "0.913", "1.000"]


def test_image_pixels_are_the_tensor() -> None:
    image = np.array([[[0.0, 1.0], [0.5, 2.0]]], dtype=np.float32)
    assert image_pixels(image)[..., 0].tolist() == [[0, 255], [128, 255]]
    assert image_pixels(image, 0, 2)[..., 0].tolist() == [[0, 128], [64, 255]]


def test_difference_is_blue_below_white_at_red_above_zero() -> None:
    blue, white, red = difference_pixels(np.array([[-0.1, 0.0, 0.1]], dtype=np.float32), 0.1)[0]
    assert blue[2] > 150 > blue[0]
    assert white.min() > 240
    assert red[0] > 150 > red[2]


def test_the_channel_that_changed_most_is_shown() -> None:
    change = np.array([[[0.1]], [[-0.3]], [[0.2]]], dtype=np.float32)
    assert strongest(change) == pytest.approx(np.array([[-0.3]]))


def test_heat_covers_the_image_only_where_it_is_strong() -> None:
    heat = np.array([[0.0, 1.0]], dtype=np.float32)
    under = np.full((1, 2, 3), 100, dtype=np.uint8)
    plain, hot = heat_pixels(heat, 1.0, under)[0]
    assert plain[0] == plain[1] == plain[2]
    assert hot[0] > 150 > hot[2]


def test_png_keeps_small_pictures_and_shrinks_large_ones() -> None:
    pixels = np.arange(40 * 20 * 3, dtype=np.uint8).reshape(40, 20, 3)
    same = np.asarray(Image.open(io.BytesIO(png(pixels, 40, smooth=True))))
    assert (same == pixels).all()
    assert Image.open(io.BytesIO(png(pixels, 10, smooth=False))).size == (5, 10)
    assert base64.b64decode(data_uri(png(pixels, 10, smooth=False)).partition(",")[2])[:4] == b"\x89PNG"
