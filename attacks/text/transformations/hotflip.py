"""The words that the gradient points to (Ebrahimi et al., HotFlip, arXiv 1712.06751)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..passage import Passage
from ..requests import Asking, Request
from .base import cased_like


@dataclass(frozen=True, slots=True)
class HotFlip:
    """Vocabulary words whose embedding lies furthest along the gradient at the place.

    Attributes:
        words: whole words of the model's vocabulary.
        vectors: their embeddings, float32 ``(len(words), d)``.
        most: candidates per place.
    """

    words: tuple[str, ...] = field(repr=False)
    vectors: Tensor = field(repr=False, compare=False)
    most: int = 10

    def propose(self, passage: Passage, slots: Sequence[int], rng: random.Random) -> Asking[list[Sequence[str]]]:
        del rng
        answers = yield Request("gradients", [passage])
        gain = answers[0][list(slots)] @ self.vectors.T
        # Relative steps: rounding in batches of another size changes no order.
        steps = (gain / gain.abs().amax(1, keepdim=True).clamp_min(1e-12) * 1e4).round()
        top = steps.argsort(dim=1, descending=True, stable=True)[:, : self.most].tolist()
        return [
            [cased_like(self.words[i], passage.words[slot]) for i in best]
            for slot, best in zip(slots, top, strict=True)
        ]
