"""Logits of raw texts where equal encodings are computed once: many edits look the same to a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]

_STEP = 8
"""Half-precision batches are padded to a multiple of so many places: a text is then padded alike in any company."""


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A tokenizer and a module as one function of raw texts.

    To a word-level model most misspellings of a word are the same unknown word, and an uncased tokenizer drops what
    has no width: of such versions only the first is given to the module. Texts of similar length go together where
    the encoder can tell: ``lengths(x)`` are the places that each text fills, ``padded(x, places)`` the same texts with
    so many places, or with as many as the longest needs if that is more. ``trimmed(x)`` alone takes away what is
    padding for all.

    Attributes:
        encode: raw texts to token ids, first axis the texts.
        module: encoded texts to logits ``(n, k)``.
        rows: texts given to the module at a time; :func:`fitting_rows` when 0.
        precision: ``bfloat16`` runs the module under autocast; logits come back in float32 either way.
    """

    encode: Callable[[Any], Tensor]
    module: nn.Module | Callable[[Tensor], Tensor]
    device: torch.device
    rows: int = 0
    precision: Precision = "float32"

    @torch.no_grad()
    def __call__(self, raws: Sequence[Any]) -> Tensor:
        x = self.encode(raws)
        if x.is_floating_point() or not len(x):
            return self._run(x)
        place: dict[bytes, int] = {}
        owner = [place.setdefault(row.tobytes(), len(place)) for row in x.flatten(1).contiguous().numpy()]
        if len(place) == len(x):
            return self._in_batches(x)
        firsts = dict(zip(reversed(owner), range(len(x) - 1, -1, -1), strict=True))
        distinct = self._in_batches(x[torch.tensor([firsts[i] for i in range(len(place))])])
        return distinct[torch.tensor(owner)]

    def _in_batches(self, x: Tensor) -> Tensor:
        rows = self.rows or fitting_rows(self.module, self.device)
        if not hasattr(self.encode, "lengths"):
            trimmed = getattr(self.encode, "trimmed", lambda part: part)
            return torch.cat([self._run(trimmed(part)) for part in x.split(rows)])
        found: Tensor | None = None
        for batch, places in self._alike(self.encode.lengths(x), rows):  # type: ignore[attr-defined]
            part = self._run(self.encode.padded(x[batch], places))  # type: ignore[attr-defined]
            found = part.new_empty(len(x), part.shape[1]) if found is None else found
            found[batch] = part
        assert found is not None
        return found

    def _alike(self, lengths: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
        """Positions of texts to compute together, and how many places they get at least."""
        order = lengths.argsort(stable=True)
        if self.precision == "float32":
            yield from ((batch, 1) for batch in order.split(rows))
            return
        steps = (lengths[order] + _STEP - 1) // _STEP
        sizes, counts = steps.unique_consecutive(return_counts=True)
        for size, group in zip(sizes.tolist(), order.split(counts.tolist()), strict=True):
            yield from ((batch, size * _STEP) for batch in group.split(rows))

    def _run(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.module(x.to(self.device)).float().cpu()


def fitting_rows(module: nn.Module | Callable[[Tensor], Tensor], device: torch.device) -> int:
    """Rows that fill a device, or that leave the activations of a large model within a processor's caches."""
    if device.type != "cpu":
        return 256
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    return 32 if sum(parameter.numel() for parameter in parameters) > 2_000_000 else 256
