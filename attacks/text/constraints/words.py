"""Constraints on which words are edited, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..passage import Passage
from .base import Plain


@dataclass(frozen=True, slots=True)
class MaxWordsChanged(Plain):
    """At most this share (0..1) of the words is edited, but one is always allowed."""

    share: float = 0.25

    def allows(self, original: Passage, passage: Passage) -> bool:
        return len(original.changed(passage)) <= max(1, int(self.share * len(original) + 1e-9))


@dataclass(frozen=True, slots=True)
class Protected(Plain):
    """Words that stay as they are, upper and lower case alike: names, product codes, words that decide the label."""

    by_slot: ClassVar[bool] = True

    words: frozenset[str]

    @classmethod
    def of(cls, words: Sequence[str]) -> Protected:
        return cls(frozenset(word.casefold() for word in words))

    def editable(self, original: Passage) -> Sequence[bool]:
        return [word.casefold() not in self.words for word in original.words]

    def allows(self, original: Passage, passage: Passage) -> bool:
        return not any(original.words[slot].casefold() in self.words for slot in original.changed(passage))


@dataclass(frozen=True, slots=True)
class ShortestWord(Plain):
    """Words of fewer characters stay as they are. Unsegmented scripts have words of one character."""

    by_slot: ClassVar[bool] = True

    characters: int = 2

    def editable(self, original: Passage) -> Sequence[bool]:
        return [len(word) >= self.characters or ord(word[0]) >= 0x0E00 for word in original.words]

    def allows(self, original: Passage, passage: Passage) -> bool:
        editable = self.editable(original)
        return all(editable[slot] for slot in original.changed(passage))
