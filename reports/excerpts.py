"""Marked texts cut into pieces for the page, with what the eye cannot see made visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from .escaping import visible
from .record import MarkedText

_LONGEST = 700
_AROUND = 60


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; ``shade`` is its weight in percent, -100..100, or None for plain text."""

    text: str
    shade: int | None = None


def marked_pieces(marked: MarkedText) -> list[Piece]:
    """The text in order; of long texts only the surroundings of marks, what is left out shown as an ellipsis."""
    text, pieces, place = marked.text, list[Piece](), 0
    for mark in marked.marks:
        start, end = max(mark.start, place), min(mark.end, len(text))
        if start > end:
            continue
        pieces.extend(_between(text, place, start, long=len(text) > _LONGEST))
        pieces.append(Piece(shown(text[start:end]) or "∅", round(100 * mark.weight)))
        place = end
    pieces.extend(_between(text, place, len(text), long=len(text) > _LONGEST))
    return pieces


def shown(text: str) -> str:
    """``text`` with characters of no width as code points: between two versions they may be all the difference."""
    return "".join(f"[U+{ord(c):04X}]" if unicodedata.category(c) == "Cf" else c for c in visible(text))


def _between(text: str, start: int, end: int, *, long: bool) -> Iterator[Piece]:
    if start == end:
        return
    if not long or end - start <= 2 * _AROUND + 20:
        yield Piece(shown(text[start:end]))
        return
    head = text[start : start + _AROUND] if start else ""
    tail = text[end - _AROUND : end] if end < len(text) else ""
    yield Piece(f"{shown(head)} […] {shown(tail)}" if start or end < len(text) else f"{shown(text[:_LONGEST])} […]")
