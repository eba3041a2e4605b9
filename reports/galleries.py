"""Galleries drawn from evidence files, within a budget of bytes, and with the reason where one cannot be drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .pictures import (
    Bytes,
    Floats,
    as_floats,
    data_uri,
    difference_pixels,
    heat_pixels,
    heat_scale,
    image_pixels,
    png,
)
from .record import Evidence, Gallery, Picture
from .writing import number

_SIDES = (160, 128, 96, 64, 48, 32)
_PIXELATE_BELOW = 64


@dataclass(frozen=True, slots=True)
class Drawn:
    """One finished picture."""

    uri: str
    alt: str
    caption: str
    pixelated: bool


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """The pictures of one sample."""

    sample_id: str
    pictures: tuple[Drawn, ...]


@dataclass(frozen=True, slots=True)
class DrawnGallery:
    """A gallery ready for the page; ``problem`` says why it has no pictures."""

    gallery: Gallery
    heads: tuple[str, ...] = ()
    rows: tuple[DrawnRow, ...] = ()
    left_out: int = 0
    shrunk_to: int = 0
    problem: str = ""


class _UndrawableError(Exception):
    """Why the pictures of a gallery cannot be drawn."""


def draw_gallery(
    gallery: Gallery, evidence: Sequence[Evidence], directory: Path, most_items: int, budget: int
) -> DrawnGallery:
    """Draws at most ``most_items`` rows in at most about ``budget`` bytes of PNG; never raises for bad evidence."""
    items = gallery.items[:most_items]
    try:
        path = _evidence_path(gallery.evidence, evidence, directory)
        columns = _columns(gallery, path, [item.index for item in items])
    except (_UndrawableError, OSError, SafetensorError, ValueError, IndexError, TypeError, MemoryError) as error:
        return DrawnGallery(gallery, problem=_reason(error))
    files, side = _within_budget(columns, budget)
    rows = [
        DrawnRow(item.sample_id, tuple(_row_pictures(gallery, item.sample_id, item.captions, row, columns, files)))
        for row, item in enumerate(items)
    ]
    native = max((max(pixels.shape[:2]) for column in columns for pixels in column.pixels), default=0)
    heads = tuple(column.head for column in columns)
    shrunk_to = side if native > side else 0
    return DrawnGallery(gallery, heads, tuple(rows), len(gallery.items) - len(items), shrunk_to)


@dataclass(frozen=True, slots=True)
class _Column:
    """One kind of picture for all rows of a gallery."""

    head: str
    pixels: tuple[Bytes, ...]
    smooth: bool


def _row_pictures(
    gallery: Gallery,
    sample_id: str,
    captions: Sequence[str],
    row: int,
    columns: Sequence[_Column],
    files: Sequence[Sequence[bytes]],
) -> Iterator[Drawn]:
    for place, (picture, column) in enumerate(zip(gallery.pictures, columns, strict=True)):
        caption = captions[place] if place < len(captions) else ""
        alt = f"{picture.title} of sample {sample_id}" + (f": {caption}" if caption else "")
        pixelated = max(column.pixels[row].shape[:2]) < _PIXELATE_BELOW
        yield Drawn(data_uri(files[place][row]), alt, caption, pixelated)


def _within_budget(columns: Sequence[_Column], budget: int) -> tuple[list[list[bytes]], int]:
    """The PNGs at the largest side that should fit the budget, judged by the first row; the smallest when none does."""
    rows = max((len(column.pixels) for column in columns), default=0)
    fitting = (side for side in _SIDES if rows * sum(len(_first_png(column, side)) for column in columns) <= budget)
    side = next(fitting, _SIDES[-1])
    return [[png(pixels, side, column.smooth) for pixels in column.pixels] for column in columns], side


def _first_png(column: _Column, side: int) -> bytes:
    return png(column.pixels[0], side, column.smooth) if column.pixels else b""


def _evidence_path(named: str, evidence: Sequence[Evidence], directory: Path) -> Path:
    """The file that ``named`` stands for, inside ``directory`` and with the recorded hash."""
    entry = next((entry for entry in evidence if entry.path == named), None)
    if entry is None:
        raise _UndrawableError(f"{named} is not among the evidence of this result")
    if PurePosixPath(named).is_absolute() or ".." in PurePosixPath(named).parts or "\\" in named:
        raise _UndrawableError(f"{named} lies outside the output folder")
    root = directory.resolve()
    path = (root / named).resolve()
    if not path.is_relative_to(root):
        raise _UndrawableError(f"{named} lies outside the output folder")
    if not path.is_file():
        raise _UndrawableError(f"{named} is missing")
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
        raise _UndrawableError(f"{named} was changed after the audit: its hash is not the recorded one")
    return path


def _columns(gallery: Gallery, path: Path, indices: Sequence[int]) -> list[_Column]:
    keys = {key for picture in gallery.pictures for key in (picture.tensor, picture.minus) if key}
    tensors = _read_rows(path, keys, indices)
    columns: list[_Column] = []
    under: _Column | None = None
    for picture in gallery.pictures:
        column = _column(picture, tensors, under)
        columns.append(column)
        # A heat map lies over the nearest image before it.
        under = column if picture.draw == "image" else under
    return columns


def _read_rows(path: Path, keys: set[str], indices: Sequence[int]) -> dict[str, list[Floats]]:
    """The wanted rows only: evidence may hold thousands of samples."""
    with safe_open(path, framework="numpy") as file:
        missing = keys - set(file.keys())
        if missing:
            raise _UndrawableError(f"the evidence has no tensor {min(missing)!r}")
        return {key: [_row(file.get_slice(key), key, index) for index in indices] for key in sorted(keys)}


def _row(tensor: Any, key: str, index: int) -> Floats:
    shape = tensor.get_shape()
    if len(shape) not in (3, 4) or not 0 <= index < shape[0]:
        raise _UndrawableError(f"tensor {key!r} of shape {tuple(shape)} has no picture {index}")
    return as_floats(np.asarray(tensor[index]))


def _column(picture: Picture, tensors: Mapping[str, list[Floats]], under: _Column | None) -> _Column:
    values = tensors[picture.tensor]
    if picture.draw == "image":
        return _image_column(picture.title, values)
    if picture.draw == "heat":
        return _heat_column(picture.title, values, under)
    if picture.minus:
        values = [_minus(value, other) for value, other in zip(values, tensors[picture.minus], strict=True)]
    full = max((float(np.nan_to_num(np.abs(value)).max(initial=0)) for value in values), default=0.0)
    pixels = tuple(difference_pixels(value, full) for value in values)
    times = f" ×{1 / full:.3g} (full colour is ±{number(full)})" if full else " (no change)"
    return _Column(picture.title + times, pixels, smooth=False)


def _image_column(title: str, values: Sequence[Floats]) -> _Column:
    low = min((float(np.nan_to_num(value).min(initial=0)) for value in values), default=0.0)
    high = max((float(np.nan_to_num(value).max(initial=1)) for value in values), default=1.0)
    # Encoded inputs outside 0..1 (normalised ones) are stretched, and the head says so.
    stretched = low < -1e-4 or high > 1 + 1e-4
    note = f" (black is {number(low)}, white {number(high)})" if stretched else ""
    low, high = (low, high) if stretched else (0.0, 1.0)
    return _Column(title + note, tuple(image_pixels(value, low, high) for value in values), smooth=True)


def _heat_column(title: str, values: Sequence[Floats], under: _Column | None) -> _Column:
    pixels = []
    for row, value in enumerate(values):
        image = under.pixels[row] if under is not None else None
        if image is not None and image.shape[:2] != value.shape[-2:]:
            image = None
        pixels.append(heat_pixels(value, heat_scale([value]), image))
    signed = any(float(np.nan_to_num(value).min(initial=0)) < 0 for value in values)
    return _Column(title + (" (red for, blue against)" if signed else " (red is strong)"), tuple(pixels), smooth=False)


def _minus(value: Floats, other: Floats) -> Floats:
    if value.shape != other.shape:
        raise _UndrawableError(f"cannot subtract shape {other.shape} from {value.shape}")
    return value - other


def _reason(error: BaseException) -> str:
    if isinstance(error, _UndrawableError):
        return str(error)
    if isinstance(error, OSError):
        return f"the evidence cannot be read: {error.strerror or error}"
    return f"the evidence cannot be read: {error}"
