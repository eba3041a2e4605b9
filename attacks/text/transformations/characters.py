"""Edits of single characters: DeepWordBug (Gao et al., arXiv 1801.04354)."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from .base import WordEdit

CharacterEdit = Literal["swap", "substitute", "delete", "insert"]
CHARACTER_EDITS: tuple[CharacterEdit, ...] = ("swap", "substitute", "delete", "insert")


@dataclass(frozen=True, slots=True)
class Characters(WordEdit):
    """Swaps two neighbours, substitutes, deletes or inserts a character; letters come from the word's own alphabet.

    Attributes:
        kinds: which of these.
        tries: random edits of each kind; all positions are tried where a word has no more.
    """

    kinds: tuple[CharacterEdit, ...] = CHARACTER_EDITS
    tries: int = 1

    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        found: dict[str, None] = {}
        for kind in self.kinds:
            places = _places(word, kind)
            chosen = rng.sample(places, min(self.tries, len(places))) if self.tries > 1 else _one(places, rng)
            for place in chosen:
                found[_edited(word, kind, place, rng)] = None
        found.pop(word, None)
        return list(found)


def _one(places: Sequence[int], rng: random.Random) -> Sequence[int]:
    """A sample of one, which a plain draw gives sooner."""
    return (places[int(rng.random() * len(places))],) if places else ()


def _places(word: str, kind: CharacterEdit) -> Sequence[int]:
    match kind:
        case "swap":
            return [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
        case "substitute":
            return range(len(word))
        case "insert":
            return range(len(word) + 1) if word else ()
        case "delete":
            return range(len(word)) if len(word) > 1 else ()


def _edited(word: str, kind: CharacterEdit, i: int, rng: random.Random) -> str:
    match kind:
        case "swap":
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        case "delete":
            return word[:i] + word[i + 1 :]
        case "substitute":
            return word[:i] + rng.choice(alphabet(word[i])) + word[i + 1 :]
        case "insert":
            return word[:i] + rng.choice(alphabet(word[max(i - 1, 0)])) + word[i:]


@lru_cache(maxsize=4096)
def alphabet(character: str) -> str:
    """Characters of the same script and case: a-z for Latin, the neighbours in Unicode elsewhere."""
    if character.isascii():
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if character.isupper() else "abcdefghijklmnopqrstuvwxyz"
    code, category = ord(character), unicodedata.category(character)
    near = [chr(c) for c in range(max(code - 16, 0), min(code + 17, 0x110000)) if c != code]
    same = "".join(
        other for other in near if unicodedata.category(other) == category and not 0xD800 <= ord(other) < 0xE000
    )
    return same or "abcdefghijklmnopqrstuvwxyz"
