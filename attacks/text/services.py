"""What constraints and edits ask for besides the model under attack, computed in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .scheduler import in_batches


@dataclass(frozen=True, slots=True)
class Batched:
    """A service from a function of a batch of texts: sentence embeddings, losses of a language model.

    Attributes:
        compute: texts in, one answer each out.
        batch_size: texts given to it at a time.
    """

    compute: Callable[[list[str]], Sequence[Any]]
    batch_size: int = 64

    def __call__(self, rows: Sequence[int], items: Sequence[Any]) -> list[Any]:
        del rows
        answers: list[Any] = [None] * len(items)
        for batch in in_batches([len(item) for item in items], self.batch_size):
            for i, answer in zip(batch, self.compute([items[i] for i in batch]), strict=True):
                answers[i] = answer
        return answers
