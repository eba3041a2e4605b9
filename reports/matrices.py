"""How dark the cells of a matrix are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .record import Matrix


def shades(matrix: Matrix) -> list[list[int]]:
    """0..100 for each cell: its share of the row where all are counts or rates, else its size against the largest."""
    values = [[v if math.isfinite(v) else 0.0 for v in row] for row in matrix.values]
    largest = max((abs(v) for row in values for v in row), default=0.0) or 1.0
    values = [[v / largest for v in row] for row in values]  # so that no sum leaves the range of a float
    shared = all(v >= 0 for row in values for v in row)
    totals = [(sum(row) or 1.0) if shared else 1.0 for row in values]
    return [[round(100 * abs(v) / total) for v in row] for row, total in zip(values, totals, strict=True)]


def matrix_picture(matrix: Matrix) -> NDArray[np.uint8]:
    """One pixel a cell, uint8 ``(h, w, 3)``, white to dark blue: for matrices too large to print."""
    width = max((len(row) for row in matrix.values), default=0)
    if not width:
        return np.full((1, 1, 3), 255, dtype=np.uint8)
    share = np.array([[*row, *[0] * (width - len(row))] for row in shades(matrix)], dtype=np.float32)[..., None] / 100
    dark = np.array((8, 48, 107), dtype=np.float32)
    return np.round(255 + (dark - 255) * np.sqrt(share)).astype(np.uint8)
