"""Whether explanations of texts stay when texts are edited: by slips of the finger, and by an attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from ...attacks.text.attack import TextAttack
from ...attacks.text.engine import attack_texts
from ...attacks.text.noise import corrupted
from ...attacks.text.passage import Passage
from ...attacks.text.recipes import FREE, Resources, build
from ...attacks.text.requests import Service
from ...attacks.text.victim import Victim
from ...reports.record import Excerpt, Finding, Mark, MarkedText, Metric
from ..attribution.findings import STANDARDS
from ..attribution.scores import mean_metric
from . import standards
from .base import Context
from .images import verdict
from .text_inputs import Texts
from .text_relevance import Words
from .text_resources import gradient_service, needed, relaxed_service, vocabulary

Attack = Literal["characters", "deepwordbug", "typos", "homoglyphs", "invisible", "whitespace", "hotflip", "gbda"]
"""Attacks that keep the places of words, and need no resource from outside (a guard of labels uses what it finds)."""
ATTACKS: tuple[Attack, ...] = get_args(Attack)
WHITE_BOX_ATTACKS = FREE & frozenset(ATTACKS)
_ELSEWHERE = 0.5
"""Overlap after an attack below this share of that after slips is worth a finding, as for images."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """Adversarial versions of some of n texts.

    Attributes:
        edits: for each text the words put into its slots, empty where the attack did not succeed.
        tried: how many texts were attacked: those the model gets right.
        logits: float32 ``(n, k)`` on the versions, and on the originals where there is none.
    """

    edits: Sequence[dict[int, str]]
    tried: int
    logits: Tensor

    @property
    def rows(self) -> list[int]:
        """The texts that fell."""
        return [row for row, own in enumerate(self.edits) if own]

    def passages(self, texts: Texts) -> list[Passage]:
        """The versions of the texts that fell: words stand in the slots of the originals."""
        return [Passage.of(texts.text(row)).with_words(self.edits[row]) for row in self.rows]


def attacked(name: Attack, texts: Texts, queries: int, context: Context) -> Attacked:
    """What the attack finds on the texts that the model gets right, re-verified from the raw strings.

    Raises:
        UnsupportedError: when the model does not give what the attack needs.
    """
    attack = attack_of(name, texts)
    outcome = attack_texts(
        attack,
        texts.logits,
        texts.raws,
        texts.y,
        budget=queries,
        column=texts.column,
        seed=context.seed,
        ids=texts.samples.ids.tolist(),
        batch_size=context.batch_size or 128,
        services=services_of(attack, texts, context),
    )
    return Attacked(outcome.edits, int(outcome.tried.sum()), outcome.logits)


def attack_of(name: Attack, texts: Texts) -> TextAttack:
    return build(name, Resources(words=lambda: vocabulary(texts.target)))


def services_of(attack: TextAttack, texts: Texts, context: Context) -> dict[str, Service]:
    """What a white-box attack asks for."""
    victim = Victim(texts.logits, texts.raws, texts.y.tolist(), column=texts.column)
    ids = texts.samples.ids.tolist()
    return needed(
        attack.services,
        {
            "gradients": lambda: gradient_service(texts.target, victim),
            "relaxed": lambda: relaxed_service(texts.target, victim, context.seed, ids),
        },
    )


def slipped(texts: Texts, classes: Tensor, context: Context) -> list[Passage]:
    """Each text with slips in a tenth of its words, the first of eight such versions that changes no prediction."""
    chosen = [Passage.of(texts.text(row)) for row in range(len(texts))]
    waiting = list(range(len(texts)))
    for attempt in range(8):
        if not waiting:
            break
        keys = [f"{context.seed}:{int(texts.samples.ids[row])}:{attempt}" for row in waiting]
        versions = [corrupted(texts.text(row), "typos", 1, key) for row, key in zip(waiting, keys, strict=True)]
        said = texts.logits([texts.with_text(row, text) for row, text in zip(waiting, versions, strict=True)])
        left = []
        for row, text, c in zip(waiting, versions, said.argmax(1).tolist(), strict=True):
            passage = Passage.of(text)
            if c == int(classes[row]) and len(passage) == len(chosen[row]):
                chosen[row] = passage
            else:
                left.append(row)
        waiting = left
    return chosen


def top_overlap(own: NDArray[np.float64], other: NDArray[np.float64], share: float = 0.2) -> float:
    """Share of the most relevant words (a fifth, one at least) of one ranking that are among those of the other."""
    k = top_count(len(own), share)
    first, second = (set(np.argsort(-values, kind="stable")[:k].tolist()) for values in (own, other))
    return len(first & second) / k


def top_count(words: int, share: float = 0.2) -> int:
    """How many words are the most relevant ones."""
    return max(1, round(share * words))


def rank_correlation(own: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman correlation of the relevances of the same words, -1..1; NaN where one says the same of all words."""
    if len(own) < 2 or np.ptp(own) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(own), rankdata(other))[0, 1])


def moves(name: str, title: str, words: Words, versions: Words, rows: Sequence[int], seed: int) -> Iterator[Metric]:
    """Means over the attack's successes, with intervals: how much of a method's ranking is the same after it."""
    own = [words[row] for row in rows]
    overlap = torch.tensor([top_overlap(a, b) for a, b in zip(own, versions, strict=True)], dtype=torch.float64)
    ranks = torch.tensor([rank_correlation(a, b) for a, b in zip(own, versions, strict=True)], dtype=torch.float64)
    label = f"{title}: top words that stay after the attack"
    yield mean_metric(f"{name}_top_overlap_attacked", overlap, label, higher_is_better=True, seed=seed)
    label = f"{title}: rank correlation of all words, attacked"
    yield mean_metric(f"{name}_rank_correlation_attacked", ranks, label, higher_is_better=True, seed=seed)


def elsewhere(name: str, title: str, metrics: Mapping[str, Metric]) -> Iterator[Finding]:
    """Explanations that an attack moves much further than slips do."""
    after, slips = metrics[f"{name}_top_overlap_attacked"], metrics[f"{name}_top_overlap_edited"]
    if after.value is None or after.ci_high is None or slips.value is None:
        return
    if after.ci_high < _ELSEWHERE * slips.value:
        yield Finding(
            severity="medium",
            title=f"{title} points to other words after an attack",
            detail=f"Of the most relevant words {after.value:.2f} are the same in adversarial versions "
            f"(95 % interval to {after.ci_high:.2f}, n = {after.n}), after slips of the finger {slips.value:.2f}.",
            remedy="Do not rely on explanations of texts that an adversary can touch.",
            standards=(*standards.BLACK_BOX_EVASION, *STANDARDS),
        )


def excerpt(texts: Texts, row: int, base: Tensor, found: Attacked, words: Words, versions: Words, at: int) -> Excerpt:
    """A text and its adversarial version, both coloured by what speaks for the class first predicted."""
    original = Passage.of(texts.text(row))
    pair = ((original, words[row], base[row]), (found.passages(texts)[at], versions[at], found.logits[row]))
    marked = (
        coloured(f"model: {verdict(logits, texts.target.classes)}", passage, values) for passage, values, logits in pair
    )
    return Excerpt(sample_id=str(texts.samples.names[row]), texts=tuple(marked))


def coloured(label: str, passage: Passage, values: NDArray[np.float64], longest: int = 20_000) -> MarkedText:
    """A text whose words bear their relevance, the largest as one; what is too long is cut for show."""
    text, largest = passage.text[:longest], float(np.abs(values).max(initial=1e-12))
    marks = tuple(
        Mark(start=start, end=end, weight=max(-1.0, min(1.0, float(value) / largest)))
        for (start, end), value in zip(passage.spans(), values, strict=True)
        if start < end <= len(text)
    )
    return MarkedText(label=label, text=text, marks=marks)
