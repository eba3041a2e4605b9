"""The model under attack as a service: versions of texts in, scores out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .scheduler import in_batches

Raw = str | tuple[str, str]
Logits = Callable[[Sequence[Raw]], Tensor]
"""Raw texts (or pairs of texts) to logits ``(n, k)``."""

_STEP = 1e-4
_HAIR = 1e-5
"""Share of the logits' size by which a margin must exceed zero."""


@dataclass(frozen=True, slots=True)
class Quick:
    """A cheaper form of the model under attack.

    Attributes:
        logits: as of the model itself, nearly.
        error: how wrong a margin may be, as a share of the logits' size. What lies at the goal or so near it is asked
            of the model itself. 0: the form is exact.
    """

    logits: Logits
    error: float


@dataclass(slots=True)
class Victim:
    """Scores versions of the samples' texts.

    Attributes:
        logits: the model on raw inputs.
        raws: the samples; in pairs one text is attacked and the other stays.
        column: which text of a pair is attacked, 0 or 1.
        goals: the label to leave, or with ``targeted`` the class to reach, for each sample.
        batch_size: rows given to the model at a time.
        quick: a cheaper form of the model, by which versions are compared.
        forwards: rows given to the model so far, in either form.
    """

    logits: Logits
    raws: Sequence[Raw]
    goals: Sequence[int]
    targeted: bool = False
    column: int = 1
    batch_size: int = 128
    quick: Quick | None = None
    forwards: int = field(default=0)

    def compose(self, row: int, text: str) -> Raw:
        """The sample with another text in the attacked column."""
        raw = self.raws[row]
        if isinstance(raw, str):
            return text
        return (text, raw[1]) if self.column == 0 else (raw[0], text)

    def text(self, row: int) -> str:
        """The text of a sample that is attacked."""
        raw = self.raws[row]
        return raw if isinstance(raw, str) else raw[self.column]

    def outputs(self, rows: Sequence[int], texts: Sequence[str]) -> Tensor:
        """Float32 logits ``(m, k)`` for versions of the samples' texts, similar lengths together."""
        return self._outputs(self.logits, rows, texts)

    def _outputs(self, logits: Logits, rows: Sequence[int], texts: Sequence[str]) -> Tensor:
        raws = [self.compose(row, text) for row, text in zip(rows, texts, strict=True)]
        lengths = [len(raw) if isinstance(raw, str) else len(raw[0]) + len(raw[1]) for raw in raws]
        found: Tensor | None = None
        for batch in in_batches(lengths, self.batch_size):
            part = logits([raws[i] for i in batch]).float().cpu()
            found = part.new_empty(len(raws), part.shape[1]) if found is None else found
            found[torch.tensor(batch)] = part
        self.forwards += len(raws)
        return torch.empty(0, 0) if found is None else found

    def __call__(self, rows: Sequence[int], texts: Sequence[Any]) -> list[tuple[float, bool]]:
        """Score and whether the model is broken, for each version."""
        if not texts:
            return []
        goal = torch.tensor([self.goals[row] for row in rows])
        logits = self._outputs(self.quick.logits if self.quick else self.logits, rows, texts)
        if self.quick and self.quick.error:
            near = broken(logits, goal, targeted=self.targeted, hair=-self.quick.error).nonzero().flatten()
            if len(near):
                places = near.tolist()
                logits[near] = self.outputs([rows[i] for i in places], [texts[i] for i in places])
        return judged(logits, goal, targeted=self.targeted)


def judged(logits: Tensor, goal: Tensor, *, targeted: bool) -> list[tuple[float, bool]]:
    """For each row of logits ``(m, k)``: the score, in whole steps of 1e-4, and whether the goal is reached.

    NaN never counts as success.
    """
    return list(
        zip(
            scores(logits, goal, targeted=targeted).tolist(),
            broken(logits, goal, targeted=targeted).tolist(),
            strict=True,
        )
    )


def scores(logits: Tensor, goal: Tensor, *, targeted: bool) -> Tensor:
    """Log odds ``(m,)`` against the label, or for the target, in whole steps of 1e-4; NaN counts as hopeless.

    Odds tell versions apart even where the probability is one to all digits.
    """
    wide = logits.double()
    own = wide.gather(1, goal[:, None])[:, 0]
    odds = wide.scatter(1, goal[:, None], float("-inf")).logsumexp(1) - own
    odds = (-odds if targeted else odds).nan_to_num(nan=-1e6, posinf=1e6, neginf=-1e6)
    return (odds / _STEP).round() * _STEP


def broken(logits: Tensor, goal: Tensor, *, targeted: bool, hair: float = _HAIR) -> Tensor:
    """Bool ``(m,)``: whether each row of logits errs, or reaches the target. Ties and NaN do not count.

    The margin must exceed a hair of the logits' size, so that a batch of another size finds the same.
    """
    own = logits.gather(1, goal[:, None])[:, 0]
    rest = logits.scatter(1, goal[:, None], float("-inf")).amax(1)
    margin = (own - rest) if targeted else (rest - own)
    return margin > hair * logits.abs().amax(1).clamp_min(1)
