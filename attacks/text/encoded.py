"""Logits of raw texts where equal encodings are computed once: many edits look the same to a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A tokenizer and a module as one function of raw texts.

    To a word-level model most misspellings of a word are the same unknown word, and an uncased tokenizer drops what
    has no width: of such versions only the first is given to the module.

    Attributes:
        encode: raw texts to token ids, first axis the texts.
        module: encoded texts to logits ``(n, k)``.
        rows: texts given to the module at a time; :func:`fitting_rows` when 0.
    """

    encode: Callable[[Any], Tensor]
    module: nn.Module | Callable[[Tensor], Tensor]
    device: torch.device
    rows: int = 0

    @torch.no_grad()
    def __call__(self, raws: Sequence[Any]) -> Tensor:
        x = self.encode(raws)
        if x.is_floating_point() or not len(x):
            return self.module(x.to(self.device)).float().cpu()
        place: dict[bytes, int] = {}
        firsts: list[int] = []
        owner: list[int] = []
        for i, row in enumerate(x.flatten(1).contiguous().numpy()):
            known = place.setdefault(row.tobytes(), len(firsts))
            if known == len(firsts):
                firsts.append(i)
            owner.append(known)
        distinct = x[torch.tensor(firsts)] if len(place) < len(x) else x
        # What pads the longest of all is more than most batches need.
        trimmed = getattr(self.encode, "trimmed", None)
        split = distinct.split(self.rows or fitting_rows(self.module, self.device))
        batches = split if trimmed is None else map(trimmed, split)
        parts = [self.module(part.to(self.device)).float().cpu() for part in batches]
        found = torch.cat(parts)
        return found[torch.tensor(owner)] if len(place) < len(x) else found


def fitting_rows(module: nn.Module | Callable[[Tensor], Tensor], device: torch.device) -> int:
    """Rows that fill a device, or that leave the activations of a large model within a processor's caches."""
    if device.type != "cpu":
        return 256
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    return 32 if sum(parameter.numel() for parameter in parameters) > 2_000_000 else 256
