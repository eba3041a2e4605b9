"""How many characters are edited."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from operator import ne

from ..passage import Passage
from .base import Plain


@dataclass(frozen=True, slots=True)
class EditDistance(Plain):
    """At most so many characters inserted, deleted or replaced, word by word (Levenshtein)."""

    characters: int = 30

    def allows(self, original: Passage, passage: Passage) -> bool:
        return edit_distance(original, passage) <= self.characters


def edit_distance(original: Passage, passage: Passage) -> int:
    """Sum of the words' edit distances: an upper bound of that of the texts, tight where words keep their slots."""
    differ = map(ne, original.words, passage.words)
    return sum(levenshtein(*pair) for pair in compress(zip(original.words, passage.words, strict=True), differ))


@lru_cache(maxsize=65536)
def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of characters that turn ``a`` into ``b``."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(before + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]
