"""Constraints that ask a model whether an edited text still means the same, or still reads well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..passage import Passage
from ..requests import Asking, Request


@dataclass(frozen=True, slots=True)
class Similarity:
    """A sentence encoder finds the cosine of the two texts' embeddings at least this large.

    The embeddings come from the service ``sentences`` (:class:`~.encoders.SentenceEncoder`).
    """

    by_slot: ClassVar[bool] = False

    at_least: float = 0.8

    def editable(self, original: Passage) -> Sequence[bool]:
        return [True] * len(original)

    def check(self, original: Passage, passages: Sequence[Passage]) -> Asking[list[bool]]:
        own, *others = yield Request("sentences", [original.text, *(passage.text for passage in passages)])
        cosine = torch.nn.functional.cosine_similarity(own[None], torch.stack(others))
        # A slack for rounding in batches of another size: verification must not refuse what the search allowed.
        return [bool(value >= self.at_least + 1e-4) for value in cosine]


@dataclass(frozen=True, slots=True)
class Fluency:
    """A language model finds the text at most so much less likely, in nats per token of the original.

    The losses come from the service ``fluency``: mean negative log likelihood of a text (float).
    """

    by_slot: ClassVar[bool] = False

    at_most: float = 1.0

    def editable(self, original: Passage) -> Sequence[bool]:
        return [True] * len(original)

    def check(self, original: Passage, passages: Sequence[Passage]) -> Asking[list[bool]]:
        own, *others = yield Request("fluency", [original.text, *(passage.text for passage in passages)])
        return [loss - own <= self.at_most - 1e-4 for loss in others]


@dataclass(frozen=True, slots=True)
class PartOfSpeech:
    """A replaced word may have one of the parts of speech of the word it replaces.

    Attributes:
        tags: a tagger: the possible parts of speech of a word, empty where it knows none (then nothing is refused).
    """

    by_slot: ClassVar[bool] = False

    tags: Callable[[str], frozenset[str]]

    def editable(self, original: Passage) -> Sequence[bool]:
        return [True] * len(original)

    def check(self, original: Passage, passages: Sequence[Passage]) -> Asking[list[bool]]:
        return [all(self._same(original, passage, slot) for slot in original.changed(passage)) for passage in passages]
        yield  # a generator that asks for nothing

    def _same(self, original: Passage, passage: Passage, slot: int) -> bool:
        own, other = self.tags(original.words[slot]), self.tags(passage.words[slot])
        return not own or not other or bool(own & other)
