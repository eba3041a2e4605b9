"""What an edit is."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from ..passage import Passage
from ..requests import Asking


class Transformation(Protocol):
    """A frozen dataclass that proposes other words for the slots of a passage."""

    def propose(self, passage: Passage, slots: Sequence[int], rng: random.Random) -> Asking[list[Sequence[str]]]:
        """For each of the slots, what could stand there."""
        ...


class WordEdit:
    """Base of edits that look at one word alone."""

    def propose(self, passage: Passage, slots: Sequence[int], rng: random.Random) -> Asking[list[Sequence[str]]]:
        return [self.edits(passage.words[slot], rng) for slot in slots]
        yield  # a generator that asks for nothing

    @abstractmethod
    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        """What could stand in place of ``word``; may be empty (slots can hold deleted words)."""


def cased_like(word: str, model: str) -> str:
    """``word`` in the case of ``model``: UPPER, Capitalised or as it is."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
