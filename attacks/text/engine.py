"""Attacks many texts at once, within a budget of queries each, and re-verifies every success from the raw string."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attack import TextAttack
from .case import Case, Judged
from .passage import Passage
from .requests import Asking, Service
from .scheduler import VICTIM, Scheduler
from .victim import Logits, Quick, Raw, Victim, broken, scores


@dataclass(frozen=True, slots=True)
class TextOutcome:
    """What an attack left of n texts.

    Attributes:
        texts: the adversarial text where it succeeded, the original elsewhere.
        edits: the words put into slots of the original where it succeeded, empty elsewhere.
        success: bool ``(n,)``: the model was right (or not yet at the target) and errs on the raw adversarial string.
        tried: bool ``(n,)``: the model was right on the original, so the text was attacked.
        clean_logits, logits: float32 ``(n, k)`` on originals and on ``texts``.
        queries: int64 ``(n,)``, versions of each text that the model was asked about, the original included.
        words: int64 ``(n,)``, words in the original.
        forwards: texts given to the model in all, verification included.
        backwards: texts for which gradients were taken.
    """

    texts: list[str]
    edits: list[dict[int, str]]
    success: Tensor
    tried: Tensor
    clean_logits: Tensor
    logits: Tensor
    queries: Tensor
    words: Tensor
    forwards: int
    backwards: int


def attack_texts(
    attack: TextAttack,
    logits: Logits,
    raws: Sequence[Raw],
    labels: Tensor,
    *,
    budget: int = 500,
    targets: Tensor | None = None,
    column: int = 1,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    batch_size: int = 128,
    quick: Quick | None = None,
    services: Mapping[str, Service] | None = None,
    progress: Callable[[int], None] | None = None,
) -> TextOutcome:
    """Attacks every text that the model gets right.

    The result for a text depends on the seed and its id, not on the other texts or on ``batch_size``.

    Args:
        attack: what to try, under which constraints, in which order.
        logits: the model: raw texts to logits ``(n, k)``.
        raws: n texts, or pairs of texts of which ``column`` is attacked.
        labels: int64 ``(n,)``.
        budget: most queries a text may cost, the original included.
        targets: int64 ``(n,)``, the class to reach; None: any wrong one.
        ids: stable numbers of the samples; their positions when None.
        quick: a cheaper form of the same model for the search; ``logits`` decides on every success.
        services: what constraints and edits ask for besides the model (sentence encoder, language model, gradients).
        progress: told how many texts were finished since it was last called.

    Raises:
        UnsupportedError: when the attack needs a service that is not given.
    """
    ids = range(len(raws)) if ids is None else ids
    goals = labels if targets is None else targets
    victim = Victim(logits, raws, goals.tolist(), targets is not None, column, batch_size, quick)
    originals = [victim.text(row) for row in range(len(raws))]
    passages = [Passage.of(text) for text in originals]
    clean = victim.outputs(range(len(raws)), originals)
    tried = (clean.argmax(1) == labels) & (goals != clean.argmax(1) if targets is not None else labels >= 0)
    rows = tried.nonzero().flatten().tolist()
    (progress or _ignore)(len(raws) - len(rows))
    known = {**(services or {}), VICTIM: victim}
    attack.require(known)
    scheduler = Scheduler({name: _on(service, rows) for name, service in known.items()}, max(budget - 1, 0))
    start = scores(clean, goals, targeted=targets is not None).tolist()
    searches = [_search(attack, passages[row], start[row], f"{seed}:{ids[row]}", budget) for row in rows]
    found = scheduler.run(searches, [len(originals[row]) for row in rows], progress or _ignore)
    return _verified(victim, originals, passages, clean, goals, tried, rows, found, scheduler)


def _search(attack: TextAttack, passage: Passage, score: float, key: str, budget: int) -> Callable[[], Asking[Judged]]:
    def begin() -> Asking[Judged]:
        rng = random.Random(key)  # noqa: S311 - for choosing edits
        case = Case(
            Judged(passage, score, broken=False),
            attack.slots(passage),
            attack.transformations,
            # Those that speak of slots alone are kept by editing no others.
            tuple(constraint for constraint in attack.constraints if not constraint.by_slot),
            rng,
            budget,
        )
        return attack.search.run(case)

    return begin


def _on(service: Service, rows: Sequence[int]) -> Service:
    """The service with the rows of all samples, for a scheduler that counts only those attacked."""
    return lambda places, items: service([rows[place] for place in places], items)


def _verified(
    victim: Victim,
    originals: Sequence[str],
    passages: Sequence[Passage],
    clean: Tensor,
    goals: Tensor,
    tried: Tensor,
    rows: Sequence[int],
    found: Sequence[Judged],
    scheduler: Scheduler,
) -> TextOutcome:
    texts, logits, edits = list(originals), clean.clone(), [dict[int, str]() for _ in originals]
    success, queries = torch.zeros(len(originals), dtype=torch.bool), torch.ones(len(originals), dtype=torch.int64)
    words = torch.tensor([len(passage) for passage in passages], dtype=torch.int64)
    for place, row in enumerate(rows):
        queries[row] += scheduler.spent[place]
    hits = [(row, one.passage) for row, one in zip(rows, found, strict=True) if one.broken]
    strings = [passage.text for _, passage in hits]
    at = torch.tensor([row for row, _ in hits], dtype=torch.int64)
    again = victim.outputs(at.tolist(), strings) if hits else clean[:0]
    stands = broken(again, goals[at], targeted=victim.targeted)
    for (row, passage), text, ok, out in zip(hits, strings, stands.tolist(), again, strict=True):
        if ok:
            texts[row], logits[row], success[row] = text, out, True
            edits[row] = {slot: passage.words[slot] for slot in passages[row].changed(passage)}
    backwards = scheduler.computed["gradients"]
    return TextOutcome(texts, edits, success, tried, clean, logits, queries, words, victim.forwards, backwards)


def _ignore(_: int) -> None:
    pass
