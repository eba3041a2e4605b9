"""Words of the same meaning, from WordNet (Ren et al., PWWS, ACL 2019)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..resources.wordnet import WordNet
from .base import WordEdit, cased_like


@dataclass(frozen=True, slots=True)
class Synonyms(WordEdit):
    """Words that share a synset, inflected and capitalised like the word they replace.

    Attributes:
        most: candidates per word, in the order of WordNet's senses.
    """

    wordnet: WordNet = field(repr=False, compare=False)
    most: int = 50

    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        del rng
        return [cased_like(other, word) for other in self.wordnet.synonyms(word)[: self.most]]
