"""Logits of raw texts where equal encodings are computed once: many edits look the same to a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .victim import Quick

Precision = Literal["float32", "bfloat16"]

_ERROR: Mapping[Precision, float] = MappingProxyType({"float32": 0.0, "bfloat16": 0.05})
"""How wrong a margin may be, as a share of the logits' size; twice what was seen on a transformer of six layers."""

_MEMORY = 100_000

_STEP = 8
"""Batches in half precision are padded to a multiple of so many places: a text is then padded alike in any company."""


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A tokenizer and a module as one function of raw texts.

    To a word-level model most misspellings of a word are the same unknown word, and an uncased tokenizer drops what
    has no width: of such versions only the first is given to the module. Texts of similar length go together where
    the encoder can tell: ``filled(x)``, bool ``(n, t)``, are the places that are no padding, ``padded(x, places)`` the
    same texts with room for so many, or for the longest. ``trimmed(x)`` alone takes away what is padding for all.

    Attributes:
        encode: raw texts to token ids, first axis the texts.
        module: encoded texts to logits ``(n, k)``.
        rows: texts given to the module at a time; :func:`fitting_rows` when 0.
        precision: ``bfloat16`` runs the module under autocast; logits come back in float32 either way.
        memory: how many encodings keep their logits from call to call.
    """

    encode: Callable[[Any], Tensor]
    module: nn.Module | Callable[[Tensor], Tensor]
    device: torch.device
    rows: int = 0
    precision: Precision = "float32"
    memory: int = 0
    _known: dict[bytes, list[float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @torch.no_grad()
    def __call__(self, raws: Sequence[Any]) -> Tensor:
        x = self.encode(raws)
        if x.is_floating_point() or not len(x):
            return self._run(x)
        filled = self.encode.filled(x) if hasattr(self.encode, "filled") else None  # type: ignore[attr-defined]
        keys = _keys(x, filled)
        known = self._known if self.memory else {}
        if len(known) + len(keys) > self.memory:
            known.clear()
        places = {key: i for i, key in reversed([*enumerate(keys)]) if key not in known}
        if places:
            first = torch.tensor([*places.values()])
            found = self._in_batches(x[first], None if filled is None else filled[first])
            known.update(zip(places, found.tolist(), strict=True))
        return torch.tensor([known[key] for key in keys])

    def _in_batches(self, x: Tensor, filled: Tensor | None) -> Tensor:
        rows = self.rows or fitting_rows(self.module, self.device)
        if filled is None:
            trimmed = getattr(self.encode, "trimmed", lambda part: part)
            return torch.cat([self._run(trimmed(part)) for part in x.split(rows)])
        found: Tensor | None = None
        for batch, places in self._alike(filled.sum(1), rows):
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


def _keys(x: Tensor, filled: Tensor | None) -> list[bytes]:
    """What tells encoded texts apart; where padding is known, whatever their padding."""
    if filled is None:
        return [row.tobytes() for row in x.flatten(1).contiguous().numpy()]
    kept = x.movedim(-1, 1)[filled].contiguous().numpy()
    content, place = kept.tobytes(), kept.nbytes // max(len(kept), 1)
    return [content[a:b] for a, b in pairwise([0, *(filled.sum(1).cumsum(0) * place).tolist()])]


def quick(model: EncodedModel, precision: Precision) -> Quick:
    """The model as searches use it: with a memory, and in half precision where the encoder says what is padding."""
    known = precision if hasattr(model.encode, "filled") else "float32"
    return Quick(replace(model, precision=known, memory=_MEMORY), _ERROR[known])


def fitting_rows(module: nn.Module | Callable[[Tensor], Tensor], device: torch.device) -> int:
    """Rows that fill a device, or that leave the activations of a large model within a processor's caches."""
    if device.type != "cpu":
        return 256
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    return 32 if sum(parameter.numel() for parameter in parameters) > 2_000_000 else 64
