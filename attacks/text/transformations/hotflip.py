"""The words that the gradient points to (Ebrahimi et al., HotFlip, arXiv 1712.06751)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from ..passage import Passage
from ..requests import Asking, Request
from .base import cased_like

_FAR = 30
"""So many times the candidates are looked at where some do not fit."""


@dataclass(frozen=True, slots=True)
class HotFlip:
    """Vocabulary words whose embedding lies furthest along the gradient at the place.

    Attributes:
        words: whole words of the model's vocabulary.
        vectors: their embeddings, float32 ``(len(words), d)``.
        most: candidates per place.
        fits: which words may take the place of which (word, other); None: any.
    """

    words: tuple[str, ...] = field(repr=False)
    vectors: Tensor = field(repr=False, compare=False)
    most: int = 10
    fits: Callable[[str, str], bool] | None = field(default=None, repr=False, compare=False)

    def propose(self, passage: Passage, slots: Sequence[int], rng: random.Random) -> Asking[list[Sequence[str]]]:
        del rng
        answers = yield Request("gradients", [passage])
        gain = answers[0][list(slots)] @ self.vectors.T
        # Relative steps: rounding in batches of another size changes no order.
        steps = (gain / gain.abs().amax(1, keepdim=True).clamp_min(1e-12) * 1e4).round()
        looked_at = self.most if self.fits is None else _FAR * self.most
        top = steps.argsort(dim=1, descending=True, stable=True)[:, :looked_at].tolist()
        return [
            list(islice(self._fitting(passage.words[slot], best), self.most))
            for slot, best in zip(slots, top, strict=True)
        ]

    def _fitting(self, word: str, places: Sequence[int]) -> Iterator[str]:
        for i in places:
            if self.fits is None or self.fits(word, self.words[i]):
                yield cased_like(self.words[i], word)
