"""Slips of the finger: a character replaced by, or typed together with, its neighbour on the keyboard."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .base import WordEdit

_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")


def _qwerty() -> dict[str, str]:
    """Neighbours on a QWERTY keyboard, whose rows are shifted by about half a key each."""
    places = {key: (r, c + 0.5 * r) for r, row in enumerate(_ROWS) for c, key in enumerate(row)}
    return {
        key: "".join(other for other, at in places.items() if other != key and _near(place, at))
        for key, place in places.items()
    }


def _near(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return abs(a[0] - b[0]) <= 1 and abs(a[1] - b[1]) <= 1


QWERTY = _qwerty()


@dataclass(frozen=True, slots=True)
class Keyboard(WordEdit):
    """Typos on an English keyboard.

    Attributes:
        tries: how many typos of a word are tried.
    """

    tries: int = 4

    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        options = [(i, key) for i, letter in enumerate(word) for key in QWERTY.get(letter.lower(), "")]
        found: dict[str, None] = {}
        for i, key in rng.sample(options, min(self.tries, len(options))):
            typed = key.upper() if word[i].isupper() else key
            found[word[:i] + typed + (word[i:] if rng.random() < 0.5 else word[i + 1 :])] = None
        found.pop(word, None)
        return list(found)
