"""One sample under attack, as searches see it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .constraints.base import Constraint
from .passage import Passage
from .requests import Asking, Request
from .transformations.base import Transformation


@dataclass(frozen=True, slots=True)
class Judged:
    """A version of the text and what the model makes of it.

    Attributes:
        score: log odds against the label (or for the class to reach), in steps of 1e-4 so that rounding in batches of
            another size changes no decision; higher is nearer to success.
        broken: whether the model errs (or says the class to reach).
    """

    passage: Passage
    score: float
    broken: bool


@dataclass(frozen=True, slots=True)
class Case:
    """What a search needs of one sample.

    Attributes:
        start: the original, judged.
        slots: where edits are allowed, ascending.
        rng: draws that belong to this sample alone.
        most: versions worth making at a time: the budget. A text of ten thousand words has more neighbours.
    """

    start: Judged
    slots: tuple[int, ...]
    transformations: tuple[Transformation, ...]
    constraints: tuple[Constraint, ...]
    rng: random.Random
    most: int = 1000

    def judge(self, passages: Sequence[Passage]) -> Asking[list[Judged]]:
        """What the model says of some versions; fewer come back when the budget runs out."""
        if not passages:
            return []
        passages = passages[: self.most]
        answers = yield Request("victim", [passage.text for passage in passages])
        return [Judged(passage, *answer) for passage, answer in zip(passages, answers, strict=False)]

    def neighbours(self, passage: Passage, slots: Iterable[int]) -> Asking[list[Passage]]:
        """Versions that differ from ``passage`` in one of these slots and keep every constraint."""
        found: dict[tuple[int, str], Passage] = {}
        asked, original = tuple(slots)[: self.most], self.start.passage
        for transformation in self.transformations:
            proposals = yield from transformation.propose(passage, asked, self.rng)
            for slot, words in zip(asked, proposals, strict=True):
                for word in words:
                    known = word in (passage.words[slot], original.words[slot])
                    if not known and len(found) < 2 * self.most:
                        found.setdefault((slot, word), passage.with_word(slot, word))
        return (yield from self.allowed(list(found.values())))

    def allowed(self, passages: list[Passage]) -> Asking[list[Passage]]:
        """Those that keep every constraint, cheap constraints first."""
        original = self.start.passage
        for constraint in self.constraints:
            if not passages:
                break
            keep = yield from constraint.check(original, passages)
            passages = [passage for passage, ok in zip(passages, keep, strict=True) if ok]
        return passages


def best(judged: Iterable[Judged]) -> Judged | None:
    """The highest score; among equals the first. A version that breaks the model beats any that does not."""
    chosen: Judged | None = None
    for one in judged:
        if chosen is None or (one.broken, one.score) > (chosen.broken, chosen.score):
            chosen = one
    return chosen
