"""Neighbours in a space of word vectors, without opposites (Jin et al., TextFooler, arXiv 1907.11932)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..resources.vectors import WordVectors
from ..resources.wordnet import WordNet
from .base import WordEdit, cased_like


@dataclass(frozen=True, slots=True)
class Neighbours(WordEdit):
    """The nearest words by cosine.

    Vectors from running text place opposites side by side (good, bad); TextFooler's were corrected for that. Here
    WordNet refuses antonyms, and a word with antonyms of its own is only exchanged for words that WordNet knows.

    Attributes:
        most: candidates per word.
        at_least: smallest cosine.
        wordnet: the guard; None: no guard.
    """

    vectors: WordVectors = field(repr=False, compare=False)
    wordnet: WordNet | None = field(default=None, repr=False, compare=False)
    most: int = 20
    at_least: float = 0.6

    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        del rng
        near = self.vectors.neighbours(word, self.most)
        return [
            cased_like(other, word) for other, cosine in near if cosine >= self.at_least and self._safe(word, other)
        ]

    def _safe(self, word: str, other: str) -> bool:
        if self.wordnet is None:
            return True
        if self.wordnet.antonyms(word) and not self.wordnet.parts_of_speech(other):
            return False
        return not self.wordnet.opposed(word, other)
