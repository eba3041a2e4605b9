"""The searches: in which order words are tried, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from .case import Case, Judged, best
from .passage import Passage
from .requests import Asking, Request

Ranking = Literal["delete", "unk", "alone", "saliency", "gradient", "order", "random"]


class Search(Protocol):
    """A frozen dataclass whose fields are the search's settings."""

    def run(self, case: Case) -> Asking[Judged]:
        """The best version found; the search ends when it is broken, nothing is left to try, or the budget is out."""
        ...


@dataclass(frozen=True, slots=True)
class Importance:
    """Word by word, the most important first, keeping the best edit of each (Jin et al., arXiv 1907.11932).

    Attributes:
        ranking: importance of a word: what its deletion does (``delete``), what ``[UNK]`` in its place does
            (``unk``), that combined with its best edit (``saliency``: PWWS, Ren et al., ACL 2019), how clearly it
            speaks for the label when the model reads nothing else (``alone``), which costs a model much less than
            the whole text for every word, the size of the gradient (``gradient``), the order of the text, or none.
        again: when all words were tried in vain, so many of the first get another edit in place of the one they have,
            for attacks whose edits are drawn at random.
    """

    ranking: Ranking = "delete"
    again: int = 0

    def run(self, case: Case) -> Asking[Judged]:
        if self.ranking == "saliency":
            return (yield from _by_saliency(case))
        order = yield from _ranked(case, self.ranking)
        current, original = case.start, case.start.passage
        for slot in (*order, *order[: self.again]):
            # The second time round the word is edited afresh, so that it still bears a single edit.
            bare = current.passage.with_word(slot, original.words[slot])
            tried = yield from case.judge((yield from case.neighbours(bare, (slot,))))
            top = best(tried)
            if top is not None and (top.broken or top.score > current.score):
                current = top
            if current.broken:
                break
        return current


@dataclass(frozen=True, slots=True)
class Greedy:
    """All edits of all words at every step, keeping the best: thorough and dear.

    Attributes:
        width: how many versions are kept from step to step; above one this is a beam search.
    """

    width: int = 1

    def run(self, case: Case) -> Asking[Judged]:
        beam, reached = [case.start], case.start
        untouched = [case.slots]
        while beam:
            candidates: dict[tuple[str, ...], Passage] = {}
            for state, slots in zip(beam, untouched, strict=True):
                for passage in (yield from case.neighbours(state.passage, slots)):
                    candidates.setdefault(passage.words, passage)
            tried = yield from case.judge(list(candidates.values()))
            tried.sort(key=lambda one: (-one.broken, -one.score))
            if not tried or not (tried[0].broken or tried[0].score > reached.score):
                return reached
            reached, beam = tried[0], tried[: self.width]
            if reached.broken:
                return reached
            original = case.start.passage
            untouched = [_untouched(case.slots, original, state.passage) for state in beam]
        return reached


@dataclass(frozen=True, slots=True)
class Genetic:
    """Mutation and crossover of a population (Alzantot et al., arXiv 1804.07998).

    Attributes:
        population: versions alive at a time.
        generations: how often they are renewed.
    """

    population: int = 24
    generations: int = 20

    def run(self, case: Case) -> Asking[Judged]:
        alive = yield from self._mutated(case, [case.start.passage] * self.population)
        top = best([case.start, *alive])
        assert top is not None
        for _ in range(self.generations):
            if top.broken or not alive:
                return top
            children = [self._child(case, alive) for _ in range(self.population - 1)]
            alive = [top, *(yield from self._mutated(case, children))]
            if len(alive) == 1:
                return top
            top = best(alive) or top
        return top

    def _mutated(self, case: Case, parents: list[Passage]) -> Asking[list[Judged]]:
        """Each parent with one random edit, those that keep the constraints."""
        children: list[Passage] = []
        for parent in parents:
            if not case.slots:
                break
            options = yield from case.neighbours(parent, (case.rng.choice(case.slots),))
            if options:
                children.append(case.rng.choice(options))
        return (yield from case.judge(list(dict.fromkeys(children))))

    def _child(self, case: Case, alive: list[Judged]) -> Passage:
        """Words of two parents, drawn by fitness, mixed slot by slot; a mix that breaks a constraint dies later."""
        low = min(one.score for one in alive)
        weights = [one.score - low + 1e-3 for one in alive]
        first, second = case.rng.choices(alive, weights, k=2)
        mixed = [case.rng.choice(pair) for pair in zip(first.passage.words, second.passage.words, strict=True)]
        return Passage(tuple(mixed), first.passage.gaps)


def _untouched(slots: tuple[int, ...], original: Passage, passage: Passage) -> tuple[int, ...]:
    changed = set(original.changed(passage))
    return tuple(slot for slot in slots if slot not in changed)


def _ranked(case: Case, ranking: Ranking) -> Asking[list[int]]:
    """The slots in the order in which to try them."""
    slots = list(case.slots)
    match ranking:
        case "order":
            return slots
        case "random":
            return case.rng.sample(slots, len(slots))
        case "gradient":
            answers = yield Request("gradients", [case.start.passage])
            sizes = torch.linalg.vector_norm(answers[0], dim=1).tolist()
            return sorted(slots, key=lambda slot: -round(sizes[slot], 6))
        case "alone":
            return (yield from _by_itself(case))
    scores = yield from _without(case, "" if ranking == "delete" else "[UNK]", slots)
    return sorted(slots[: len(scores)], key=lambda slot: -scores[slot])


def _by_itself(case: Case) -> Asking[list[int]]:
    """Words that speak most clearly for the label first; half of the budget at most is spent on finding that out."""
    words, slots = case.start.passage.words, case.slots[: max(case.most // 2, 1)]
    tried = yield from case.judge([Passage((words[slot],), ("", "")) for slot in slots])
    scores = {slot: one.score for slot, one in zip(slots, tried, strict=False)}
    return [*sorted(scores, key=scores.__getitem__), *case.slots[len(scores) :]]


def _without(case: Case, filler: str, slots: Sequence[int]) -> Asking[dict[int, float]]:
    """Score of the text without each slot's word; of as many slots as the budget has room for."""
    original = case.start.passage
    tried = yield from case.judge([original.with_word(slot, filler) for slot in slots[: case.most]])
    return {slot: one.score for slot, one in zip(slots, tried, strict=False)}


def _by_saliency(case: Case) -> Asking[Judged]:
    """PWWS: each word's best edit, applied in the order of saliency times gain.

    The best edits are found first, on the original, so the ranking needs no further queries. The most salient words
    come first, and the search for edits ends when those found break the model, alone or together. Words without edits
    need no saliency, which is a softmax: leaving some out scales the others alike.
    """
    original, start = case.start.passage, case.start.score
    options: dict[int, list[Passage]] = {}
    for passage in (yield from case.neighbours(original, case.slots)):
        options.setdefault(original.changed(passage)[0], []).append(passage)
    without = yield from _without(case, "[UNK]", list(options))
    ranked: list[tuple[float, int, str]] = []
    gained, bar, reached = start, 0.0, case.start
    for slot in sorted(without, key=lambda slot: -without[slot]):
        top = best((yield from case.judge(options[slot])))
        if top is None:
            break
        if top.broken:
            return top
        # The saliency is a change in probability, as in the paper; scores are log odds.
        weight = math.exp(_probability(without[slot]) - _probability(start))
        gain = _probability(top.score) - _probability(start)
        ranked.append((round(gain * weight, 9), slot, top.passage.words[slot]))
        gained += max(top.score - start, 0.0)
        # Log odds nearly add up, so all edits together are only tried when they promise enough.
        if gained > bar and len(ranked) > 1:
            words = {slot: word for worth, slot, word in ranked if worth > 0}
            for one in (yield from case.judge((yield from case.allowed([original.with_words(words)])))):
                reached, bar = one, gained - one.score
            if reached.broken:
                break
    found = yield from _applied(case, sorted(ranked, key=lambda entry: (-entry[0], entry[1])))
    return found if found.broken else best((reached, found)) or found


def _applied(case: Case, ranked: Sequence[tuple[float, int, str]]) -> Asking[Judged]:
    """Words put into slots one after the other as long as the score rises, until the model is broken."""
    current = case.start
    for _, slot, word in ranked:
        together = yield from case.allowed([current.passage.with_word(slot, word)])
        judged = yield from case.judge(together)
        if judged and (judged[0].broken or judged[0].score > current.score):
            current = judged[0]
        if current.broken:
            break
    return current


def _probability(score: float) -> float:
    """The probability that belongs to log odds."""
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
