"""Words that a masked language model finds likely in the place (Garg and Ramakrishnan, BAE, arXiv 2004.01970;
Li et al., BERT-Attack, arXiv 2004.09984)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..passage import Passage
from ..requests import Asking, Request
from ..scheduler import in_batches
from .base import cased_like


@dataclass(frozen=True, slots=True)
class Masked:
    """The model's likeliest words with the word masked; proposals come from the service ``masked``.

    Attributes:
        opposed: whether two words are opposites, which are refused; None: no guard.
    """

    opposed: Callable[[str, str], bool] | None = field(default=None, repr=False, compare=False)

    def propose(self, passage: Passage, slots: Sequence[int], rng: random.Random) -> Asking[list[Sequence[str]]]:
        del rng
        answers = yield Request("masked", [(passage, slot) for slot in slots])
        return [self._kept(passage.words[slot], words) for slot, words in zip(slots, answers, strict=True)]

    def _kept(self, word: str, words: Sequence[str]) -> list[str]:
        fitting = [other for other in words if self.opposed is None or not self.opposed(word, other)]
        return [cased_like(other, word) for other in fitting if other.lower() != word.lower()]


@dataclass(frozen=True, slots=True)
class MaskedService:
    """Whole words that a masked language model proposes.

    Attributes:
        logits: texts with one mask each to the logits ``(n, vocabulary)`` at the mask.
        mask: the text that stands for the mask.
        words: token ids of whole words.
        most: proposals per place.
        radius: words of context on each side.
    """

    logits: Callable[[list[str]], Tensor]
    mask: str
    words: dict[str, int]
    most: int = 20
    radius: int = 48
    batch_size: int = 64

    def __call__(self, rows: Sequence[int], items: Sequence[Any]) -> list[list[str]]:
        del rows
        names, ids = list(self.words), torch.tensor(list(self.words.values()))
        texts = [self._masked(passage, slot) for passage, slot in items]
        answers: list[list[str]] = [[] for _ in items]
        for batch in in_batches([len(text) for text in texts], self.batch_size):
            found = self.logits([texts[i] for i in batch])[:, ids]
            # In steps, so that rounding in batches of another size changes no order; ties go by token id.
            steps = (found.double() * 1e3).round()
            order = steps.argsort(dim=1, descending=True, stable=True)[:, : self.most]
            for i, best in zip(batch, order.tolist(), strict=True):
                answers[i] = [names[place] for place in best]
        return answers

    def _masked(self, passage: Passage, slot: int) -> str:
        low, high = max(slot - self.radius, 0), min(slot + self.radius + 1, len(passage))
        words = [*passage.words[low:high]]
        words[slot - low] = self.mask
        return Passage(tuple(words), ("", *passage.gaps[low + 1 : high], "")).text
