"""Sentences that say nothing about the label, put before or after the text (in the manner of Jia and Liang,
arXiv 1707.07328)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..passage import Passage
from ..requests import Asking

SENTENCES = (
    "I saw it on a Tuesday.",
    "The ticket was paid by card.",
    "My brother lives in Dublin.",
    "It was raining outside.",
    "The meeting starts at nine.",
    "She drinks tea in the morning.",
    "The book has three hundred pages.",
    "There are twelve months in a year.",
    "We took the bus to the station.",
    "The letter arrived on Monday.",
    "He parked the car near the river.",
    "https://example.com/a1B2c3",
)
"""Statements without opinion; the last is a link, as they end many posts."""


@dataclass(frozen=True, slots=True)
class Distractors:
    """Puts a sentence before the first or after the last word; counts as an edit of that word.

    Attributes:
        sentences: what to put there.
    """

    sentences: tuple[str, ...] = SENTENCES

    def propose(self, passage: Passage, slots: Sequence[int], rng: random.Random) -> Asking[list[Sequence[str]]]:
        del rng
        return [self._around(passage, slot) for slot in slots]
        yield  # a generator that asks for nothing

    def _around(self, passage: Passage, slot: int) -> list[str]:
        word, found = passage.words[slot], list[str]()
        if slot == 0:
            found += [f"{sentence} {word}" for sentence in self.sentences]
        if slot == len(passage) - 1:
            stop = passage.gaps[-1].strip()[:1] in (".", "!", "?")  # which then ends the added sentence
            found += [f"{word}. {sentence.rstrip('.') if stop else sentence}" for sentence in self.sentences]
        return found
