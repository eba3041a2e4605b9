"""Refuses data that no audit can be run on, and says what to change."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..samples import Inputs
from ..target import Modality
from .encode import Layout, find_layout

_CHUNK = 1024
_TOLERANCE = 1e-6


def check_labels(labels: Any, n: int, place: str) -> NDArray[np.int64]:
    """Labels as int64 ``(n,)``.

    Raises:
        DataError: when there are none, their number differs from the inputs', or they are not class numbers.
    """
    labels = np.asarray(labels)
    if n == 0 or len(np.atleast_1d(labels)) == 0:
        raise DataError(f"{place}: no samples")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        hint = "; for one-hot labels give labels.argmax(1)" if labels.ndim == 2 else ""
        raise DataError(f"{place}: labels have shape {labels.shape}: give one class number a sample, shape (n,){hint}")
    if len(labels) != n:
        raise DataError(f"{place}: {n} inputs, but {len(labels)} labels")
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != np.bool_:
        raise DataError(
            f"{place}: labels are {labels.dtype}: give whole numbers 0..k-1, such as labels.astype('int64')"
        )
    if labels.dtype == np.uint64 and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{place}: a label is {labels.max()}, classes count from 0")
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise DataError(f"{place}: sample {labels.argmin()} has label {labels.min()}: classes count from 0")
    if labels.max() >= 1_000_000:
        raise DataError(f"{place}: sample {labels.argmax()} has label {labels.max()}: that is no class number")
    return labels


def check_inputs(inputs: Inputs, modality: Modality, layout: Layout | None, place: str) -> None:
    """Looks at every value, a chunk at a time.

    Raises:
        DataError: for a wrong number of axes, NaN or infinity, or images that are neither uint8 nor floats in 0..1.
    """
    for start in range(0, len(inputs), _CHUNK):
        chunk = np.asarray(inputs[np.arange(start, min(start + _CHUNK, len(inputs)))])
        if modality == "image":
            _check_images(chunk, layout, place, start)
        else:
            _check_rows(chunk, place, start)


def _check_images(chunk: NDArray[Any], layout: Layout | None, place: str, start: int) -> None:
    try:
        expected = len(layout or find_layout(chunk.shape[1:]))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    if chunk.ndim != expected + 1:
        raise DataError(f"{place}: layout {layout} needs {expected} axes an image, these have {chunk.shape[1:]}")
    if 0 in chunk.shape:
        raise DataError(f"{place}: images of shape {chunk.shape[1:]} have no pixels")
    if chunk.dtype == np.uint8:
        return
    if not np.issubdtype(chunk.dtype, np.floating):
        raise DataError(f"{place}: images are {chunk.dtype}: store uint8 (0..255) or floats in 0..1")
    _check_finite(chunk, place, start)
    low, high = float(chunk.min()), float(chunk.max())
    if low < -_TOLERANCE:
        raise DataError(
            f"{place}: values go down to {low:.4g}: give images in 0..1; "
            "the model's own normalisation belongs in model.preprocessing (mean, std)"
        )
    if high > 255 + _TOLERANCE:
        raise DataError(f"{place}: values go up to {high:.6g}: give images as uint8 or floats in 0..1")
    if high > 1 + _TOLERANCE:
        raise DataError(f"{place}: values run from {low:.4g} to {high:.4g} as floats: divide by 255 or store uint8")


def _check_rows(chunk: NDArray[Any], place: str, start: int) -> None:
    if chunk.ndim != 2:
        raise DataError(f"{place}: a table has shape (n, d), this is {('n', *chunk.shape[1:])}")
    if not np.issubdtype(chunk.dtype, np.number) or np.iscomplexobj(chunk):
        raise DataError(f"{place}: values are {chunk.dtype}: give numbers")
    _check_finite(chunk, place, start)


def _check_finite(chunk: NDArray[Any], place: str, start: int) -> None:
    bad = ~np.isfinite(chunk).all(axis=tuple(range(1, chunk.ndim)))
    if bad.any():
        first = chunk[bad.argmax()]
        kind = "NaN" if np.isnan(first).any() else "infinity"
        raise DataError(f"{place}: sample {start + bad.argmax()} holds {kind}; remove or repair it")
