"""What happens to texts on their way: typing, scanning, forms that drop case and punctuation, fields that cut."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType

from .passage import Passage
from .transformations.characters import Characters
from .transformations.keyboard import Keyboard

_SHARES = (0.1, 0.25, 0.5)
"""Share of the words, or of what the corruption is about, that each severity touches."""

SEVERITIES = (1, 2, 3)

_OCR = {
    "m": "rn", "w": "vv", "l": "1", "i": "l", "o": "0", "O": "0", "e": "c", "c": "e", "h": "b", "b": "h", "u": "ii",
    "n": "ri", "g": "q", "S": "5", "B": "8", "t": "f", "I": "l", "5": "S", "0": "O", "1": "l", "8": "B",
}  # fmt: skip
"""Confusions that recognisers of printed text make most."""


def typos(text: str, severity: int, rng: random.Random) -> str:
    """Slips of the finger in a tenth, a quarter, half of the words."""

    def slip(word: str) -> str:
        options = [*Characters(tries=1).edits(word, rng), *Keyboard(1).edits(word, rng)]
        return rng.choice(options) if options else word

    return _in_words(text, severity, rng, slip)


def ocr(text: str, severity: int, rng: random.Random) -> str:
    """Characters read wrongly, as from a scan."""

    def misread(word: str) -> str:
        places = [i for i, letter in enumerate(word) if letter in _OCR]
        if not places:
            return word
        i = rng.choice(places)
        return word[:i] + _OCR[word[i]] + word[i + 1 :]

    return _in_words(text, severity, rng, misread)


def case(text: str, severity: int, rng: random.Random) -> str:
    """Lower case; upper case; random case."""
    if severity < 3:
        return text.lower() if severity == 1 else text.upper()
    return "".join(letter.upper() if rng.random() < 0.5 else letter.lower() for letter in text)


def punctuation(text: str, severity: int, rng: random.Random) -> str:
    """Half of the punctuation gone; all of it; all of it and the accents."""
    kept = "".join(c for c in text if not _is_mark(c) or (severity == 1 and rng.random() < 0.5))
    if severity < 3:
        return kept
    parts = unicodedata.normalize("NFD", kept)
    return unicodedata.normalize("NFC", "".join(c for c in parts if unicodedata.category(c) != "Mn"))


def spacing(text: str, severity: int, rng: random.Random) -> str:
    """Blanks lost between words, and put into words."""
    passage = Passage.of(text)
    share, gaps = _SHARES[severity - 1], list(passage.gaps)
    for i in range(1, len(gaps) - 1):
        if gaps[i] == " " and rng.random() < share / 2:
            gaps[i] = ""
    joined = Passage(passage.words, tuple(gaps)).text
    return _in_words(joined, severity, rng, lambda word: _split(word, rng), halved=True)


def truncation(text: str, severity: int, rng: random.Random) -> str:
    """The first three quarters, half, quarter of the words."""
    del rng
    passage = Passage.of(text)
    keep = max(1, round(len(passage) * (1 - severity / 4)))
    return Passage(passage.words[:keep], passage.gaps[: keep + 1]).text if len(passage) > 1 else text


NOISES: Mapping[str, Callable[[str, int, random.Random], str]] = MappingProxyType(
    {
        "typos": typos,
        "ocr": ocr,
        "case": case,
        "punctuation": punctuation,
        "spacing": spacing,
        "truncation": truncation,
    }
)
"""Each takes a text, a severity 1..3 and draws that belong to the sample."""


def corrupted(text: str, name: str, severity: int, key: str) -> str:
    """The text under one corruption; the same for the same key."""
    return NOISES[name](text, severity, random.Random(f"{key}:{name}:{severity}"))  # noqa: S311 - no secret


def _in_words(text: str, severity: int, rng: random.Random, edit: Callable[[str], str], *, halved: bool = False) -> str:
    passage = Passage.of(text)
    if not len(passage):
        return text
    share = _SHARES[severity - 1] / (2 if halved else 1)
    count = min(len(passage), max(1, round(share * len(passage))))
    slots = rng.sample(range(len(passage)), count)
    return passage.with_words({slot: edit(passage.words[slot]) for slot in sorted(slots)}).text


def _split(word: str, rng: random.Random) -> str:
    if len(word) < 2:
        return word
    i = rng.randrange(1, len(word))
    return f"{word[:i]} {word[i:]}"


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P")
