"""Texts as checks see them: raw strings or pairs, and the text of each that is examined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...attacks.text.encoded import EncodedModel, Precision, quick
from ...attacks.text.victim import Quick, Raw
from ..loading.tokens import as_texts
from ..samples import Samples
from ..target import Target
from .outputs import require_finite, spaced


@dataclass(frozen=True, slots=True)
class Texts:
    """Samples of a text target.

    Attributes:
        raws: strings, or pairs of strings of which ``column`` is examined.
        y: int64 ``(n,)``, labels.
    """

    target: Target
    samples: Samples
    raws: Sequence[Raw]
    y: Tensor
    column: int

    @classmethod
    def of(cls, target: Target, samples: Samples, limit: int | None, column: int = 1) -> Texts:
        """At most ``limit`` samples, evenly spaced."""
        samples = spaced(samples, limit)
        raws = as_texts(samples.inputs[np.arange(len(samples))])
        return cls(target, samples, raws, torch.from_numpy(samples.labels), column)

    def __len__(self) -> int:
        return len(self.raws)

    def text(self, row: int) -> str:
        """The text that is examined."""
        raw = self.raws[row]
        return raw if isinstance(raw, str) else raw[self.column]

    def with_text(self, row: int, text: str) -> Raw:
        """The sample with another text."""
        raw = self.raws[row]
        if isinstance(raw, str):
            return text
        return (text, raw[1]) if self.column == 0 else (raw[0], text)

    def logits(self, raws: Sequence[Raw]) -> Tensor:
        """Float32 logits ``(m, k)`` on the CPU of a batch of raw inputs."""
        return self._model(raws)

    def quick(self, precision: Precision) -> Quick:
        """The same for a search: equal encodings are computed once, and maybe in half precision."""
        return quick(self._model, precision)

    @property
    def _model(self) -> EncodedModel:
        return EncodedModel(self.target.encode, self.target.module, self.target.device)

    def require_finite(self, logits: Tensor) -> None:
        """Refuses logits of the samples that are NaN or infinite.

        Raises:
            ModelError: names the first samples.
        """
        require_finite(logits, self.samples)
