"""A text as words and the gaps between them, so that words can be exchanged and nothing else changes."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from operator import ne

# Scripts written without spaces: each character counts as a word of its own.
_UNSEGMENTED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_INNER = frozenset("'’-")


@dataclass(frozen=True, slots=True)
class Passage:
    """``gaps[0] words[0] gaps[1] … words[n-1] gaps[n]`` is the text, character for character.

    An edit replaces what stands in a slot: ``""`` deletes the word, ``"two words"`` splits it. The number of slots
    never changes, so two versions of a text can be compared slot by slot.
    """

    words: tuple[str, ...]
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Passage:
        """Splits a text; joining it again gives the text back."""
        words, gaps, end = [], [], 0
        for start, stop in _spans(text):
            gaps.append(text[end:start])
            words.append(text[start:stop])
            end = stop
        return cls(tuple(words), (*gaps, text[end:]))

    def __len__(self) -> int:
        return len(self.words)

    @property
    def text(self) -> str:
        parts = [""] * (2 * len(self.words) + 1)
        parts[::2], parts[1::2] = self.gaps, self.words
        return "".join(parts)

    def with_word(self, slot: int, word: str) -> Passage:
        """The same passage with another word in one slot."""
        words = list(self.words)
        words[slot] = word
        return Passage(tuple(words), self.gaps)

    def with_words(self, words: dict[int, str]) -> Passage:
        """The same passage with other words in some slots."""
        return Passage(tuple(words.get(i, word) for i, word in enumerate(self.words)), self.gaps)

    def changed(self, other: Passage) -> list[int]:
        """Slots in which two versions of a passage differ."""
        return list(compress(range(len(self.words)), map(ne, self.words, other.words)))

    def spans(self) -> list[tuple[int, int]]:
        """First and past-the-last character of each slot in :attr:`text`."""
        spans, place = [], len(self.gaps[0])
        for word, gap in zip(self.words, self.gaps[1:], strict=True):
            spans.append((place, place + len(word)))
            place += len(word) + len(gap)
        return spans


_ASCII_WORD = re.compile(r"\w+(?:['-]\w+)*", re.ASCII)


def _spans(text: str) -> list[tuple[int, int]]:
    if text.isascii():
        return [match.span() for match in _ASCII_WORD.finditer(text)]
    spans: list[tuple[int, int]] = []
    start = -1
    for i, character in enumerate(text):
        kind = _kind(character)
        if kind == "letter" and start < 0:
            start = i
        elif kind == "alone" or (kind == "gap" and not _joins(text, i, start)):
            if start >= 0:
                spans.append((start, i))
                start = -1
            if kind == "alone":
                spans.append((i, i + 1))
    if start >= 0:
        spans.append((start, len(text)))
    return spans


def _joins(text: str, i: int, start: int) -> bool:
    """Whether a hyphen or apostrophe stands inside a word."""
    return start >= 0 and text[i] in _INNER and i + 1 < len(text) and _kind(text[i + 1]) == "letter"


@lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    code = ord(character)
    category = unicodedata.category(character)
    if category[0] in "LMN":
        return "alone" if any(low <= code <= high for low, high in _UNSEGMENTED) else "letter"
    return "alone" if category == "So" else "letter" if character == "_" else "gap"
