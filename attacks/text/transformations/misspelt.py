"""Words written the way people often get them wrong."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .base import WordEdit, cased_like


@dataclass(frozen=True, slots=True)
class Misspelt(WordEdit):
    """Common misspellings.

    Attributes:
        known: misspellings by lower-case word.
    """

    known: Mapping[str, Sequence[str]] = field(repr=False, compare=False)

    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        del rng
        return [cased_like(wrong, word) for wrong in self.known.get(word.lower(), ())]
