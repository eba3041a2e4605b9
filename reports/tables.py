"""The table that stands beside every chart: the same numbers for those who cannot or will not read pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .record import Chart, Line, Matrix, Table
from .writing import bounds_text, number

_MOST_ROWS = 40

Cell = str | int | float | None


def chart_table(chart: Chart) -> Table:
    """A table equivalent of a chart, thinned to some forty rows a line where curves are long."""
    rows = _category_rows(chart) if chart.categories else _shared_rows(chart) or _long_rows(chart)
    values = tuple(line.name or chart.y_label for line in chart.lines)
    long = not chart.categories and not _share_x(chart)
    columns = ("series", chart.x_label, chart.y_label) if long else (chart.x_label, *values)
    caption = f"Every point is in audit.json; {_MOST_ROWS} are shown." if _longest(chart) > _MOST_ROWS else ""
    return Table(id=f"{chart.id}-table", title=chart.title, caption=caption, columns=columns, rows=tuple(rows))


def is_numeric(table: Table, column: int) -> bool:
    """Whether a column holds numbers only, gaps aside."""
    cells = [row[column] for row in table.rows if column < len(row) and row[column] is not None]
    return bool(cells) and not any(isinstance(cell, str) for cell in cells)


def cell_texts(table: Table) -> list[list[str]]:
    """The cells as text, the numbers of a column all with the same decimals."""
    places = [_column_decimals(table, column) for column in range(max(map(len, table.rows), default=0))]
    return [[_cell_text(cell, places[column]) for column, cell in enumerate(row)] for row in table.rows]


def confusions_table(matrix: Matrix, most: int = 30) -> Table:
    """The largest cells off the diagonal, for matrices too large to print."""
    cells = [
        (value, row_name, column_name)
        for i, (row_name, row) in enumerate(zip(matrix.labels, matrix.values, strict=False))
        for j, (column_name, value) in enumerate(zip(matrix.labels, row, strict=False))
        if i != j and math.isfinite(value) and value
    ]
    cells.sort(key=lambda cell: -cell[0])
    return Table(
        id=f"{matrix.id}-largest",
        title=f"Largest entries off the diagonal: {matrix.title}",
        columns=(matrix.row_label, matrix.column_label, "value"),
        rows=tuple((row, column, value) for value, row, column in cells[:most]),
    )


def _column_decimals(table: Table, column: int) -> int | None:
    """The most decimals that a number of the column needs; None where powers of ten are needed."""
    values = [row[column] for row in table.rows if column < len(row)]
    texts = [number(value) for value in values if isinstance(value, float) and math.isfinite(value)]
    if any("×" in text for text in texts):
        return None
    return max((len(text.partition(".")[2]) for text in texts), default=0)


def _cell_text(cell: Cell, decimals: int | None) -> str:
    if isinstance(cell, float) and math.isfinite(cell) and decimals is not None:
        return f"{cell:,.{decimals}f}".replace("-", "−")
    return cell if isinstance(cell, str) else number(cell)


def _share_x(chart: Chart) -> bool:
    return len({line.x for line in chart.lines}) <= 1 and not any(line.x_low for line in chart.lines)


def _shared_rows(chart: Chart) -> list[tuple[Cell, ...]]:
    if not chart.lines or not _share_x(chart):
        return []
    xs = chart.lines[0].x
    return [(xs[i], *(_value(line, i) for line in chart.lines)) for i in _picked(len(xs))]


def _long_rows(chart: Chart) -> list[tuple[Cell, ...]]:
    return [(line.name, _x_with_bounds(line, i), _value(line, i)) for line in chart.lines for i in _picked(len(line.x))]


def _category_rows(chart: Chart) -> list[tuple[Cell, ...]]:
    rows = []
    for place, category in enumerate(chart.categories):
        cells = []
        for line in chart.lines:
            index = next((i for i, x in enumerate(line.x) if x == place), None)
            cells.append(None if index is None else _value(line, index))
        rows.append((category, *cells))
    return rows


def _value(line: Line, index: int) -> Cell:
    """A bare number, which sorts, or a number with its bounds."""
    value = _at(line.y, index)
    bounds = bounds_text(value, _at(line.low, index), _at(line.high, index))
    return f"{number(value)} ({bounds})" if bounds else value


def _x_with_bounds(line: Line, index: int) -> Cell:
    bounds = bounds_text(line.x[index], _at(line.x_low, index), _at(line.x_high, index))
    return f"{number(line.x[index])} ({bounds})" if bounds else line.x[index]


def _at(values: Sequence[float | None], index: int) -> float | None:
    return values[index] if index < len(values) else None


def _picked(count: int) -> list[int]:
    """Indices of at most forty points, evenly spread, first and last among them."""
    if count <= _MOST_ROWS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_MOST_ROWS - 1)) for i in range(_MOST_ROWS)})


def _longest(chart: Chart) -> int:
    return max((len(line.x) for line in chart.lines), default=0)
