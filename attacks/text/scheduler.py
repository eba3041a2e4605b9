"""Runs the searches of many samples side by side and answers what they ask for in common batches."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .requests import Asking, Request, Service

VICTIM = "victim"
_MOST_SAMPLES, _MOST_CHARACTERS = 512, 100_000
"""Samples searched at a time, and the characters of their texts together: each may ask for hundreds of versions."""


@dataclass(slots=True)
class _Search:
    """One sample's search and what it waits for; ``known`` keeps answers, so that no question costs twice."""

    steps: Asking[Any]
    waiting: Request
    known: dict[tuple[str, Hashable], Any] = field(default_factory=dict)
    spent: int = 0


@dataclass(slots=True)
class Scheduler:
    """Answers requests of many samples together.

    What a sample is told depends on that sample alone: neither on the others, nor on the order, nor on batches.

    Attributes:
        services: by name; ``victim`` is the model under attack.
        budget: queries of the victim a sample may spend; versions asked for a second time are free.
        spent: queries of each sample ``(n,)`` so far, by row.
        computed: items that each service computed.
    """

    services: Mapping[str, Service]
    budget: int
    spent: dict[int, int] = field(default_factory=dict)
    computed: Counter[str] = field(default_factory=Counter)

    def run(
        self, searches: Sequence[Callable[[], Asking[Any]]], sizes: Sequence[int], done: Callable[[int], None]
    ) -> list[Any]:
        """The value of each search, in order.

        Args:
            searches: one a sample; called when its turn comes.
            sizes: length of each sample's text.
            done: told each time how many samples have just been finished.
        """
        results: list[Any] = [None] * len(searches)
        left = deque(range(len(searches)))
        active: dict[int, _Search] = {}
        while left or active:
            held = sum(sizes[row] for row in active)
            while left and (not active or (len(active) < _MOST_SAMPLES and held + sizes[left[0]] <= _MOST_CHARACTERS)):
                row = left.popleft()
                held += sizes[row]
                self._begin(row, searches[row](), active, results)
            before = len(active)
            self._answer(active, results)
            done(before - len(active))
        return results

    def _begin(self, row: int, steps: Asking[Any], active: dict[int, _Search], results: list[Any]) -> None:
        self.spent[row] = 0
        try:
            active[row] = _Search(steps, next(steps))
        except StopIteration as end:
            results[row] = end.value

    def _answer(self, active: dict[int, _Search], results: list[Any]) -> None:
        """One round: what all wait for is computed by service, then each search goes on to its next request."""
        wanted: dict[str, list[tuple[int, Hashable]]] = {}
        granted = {row: self._granted(search) for row, search in active.items()}
        for row, search in active.items():
            name = search.waiting.service
            new = dict.fromkeys(item for item in granted[row] if (name, item) not in search.known)
            wanted.setdefault(name, []).extend((row, item) for item in new)
        for name, asked in wanted.items():
            answers = self.services[name]([row for row, _ in asked], [item for _, item in asked]) if asked else []
            self.computed[name] += len(asked)
            for (row, item), answer in zip(asked, answers, strict=True):
                active[row].known[name, item] = answer
        for row, search in list(active.items()):
            name = search.waiting.service
            try:
                search.waiting = search.steps.send([search.known[name, item] for item in granted[row]])
            except StopIteration as end:
                results[row] = end.value
                self.spent[row] = search.spent
                del active[row]

    def _granted(self, search: _Search) -> Sequence[Hashable]:
        """The items of a request up to where the budget runs out."""
        items = search.waiting.items
        if search.waiting.service != VICTIM:
            return items
        fresh: set[Hashable] = set()
        for place, item in enumerate(items):
            if (VICTIM, item) in search.known or item in fresh:
                continue
            if search.spent + len(fresh) >= self.budget:
                search.spent += len(fresh)
                return items[:place]
            fresh.add(item)
        search.spent += len(fresh)
        return items


def exhausted(items: Sequence[Any], answers: Sequence[Any]) -> bool:
    """Whether the budget ran out within a request."""
    return len(answers) < len(items)


def in_batches(lengths: Sequence[int], rows: int, characters: int = 65_536) -> Iterator[list[int]]:
    """Positions in batches of texts of about the same length, at most ``rows`` and about so many characters each."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) >= rows or (len(batch) + 1) * max(lengths[i], 1) > characters):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
