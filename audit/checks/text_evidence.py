"""Edited words as tensors, because evidence is safetensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pack_edits(edits: Sequence[dict[int, str]], rows: Sequence[int]) -> dict[str, Tensor]:
    """The edits of some samples, as tensors.

    ``edit_row`` and ``edit_slot`` int64 ``(m,)`` say where each edit belongs; ``edit_end`` int64 ``(m,)`` where its
    word ends among ``edit_bytes``, the UTF-8 of all words one after the other.
    """
    flat = [(row, slot, word.encode()) for row in rows for slot, word in sorted(edits[row].items())]
    ends = torch.tensor([len(word) for _, _, word in flat], dtype=torch.int64).cumsum(0)
    joined = b"".join(word for _, _, word in flat)
    return {
        "edit_row": torch.tensor([row for row, _, _ in flat], dtype=torch.int64),
        "edit_slot": torch.tensor([slot for _, slot, _ in flat], dtype=torch.int64),
        "edit_end": ends,
        "edit_bytes": torch.frombuffer(bytearray(joined), dtype=torch.uint8) if joined else torch.empty(0).byte(),
    }


def unpack_edits(tensors: dict[str, Tensor], n: int) -> list[dict[int, str]]:
    """Inverse of :func:`pack_edits` for ``n`` samples.

    Raises:
        ValueError: when the tensors do not fit together.
    """
    edits: list[dict[int, str]] = [{} for _ in range(n)]
    content, start = bytes(tensors["edit_bytes"].tolist()), 0
    places = zip(*(tensors[name].tolist() for name in ("edit_row", "edit_slot", "edit_end")), strict=True)
    for row, slot, end in places:
        if not 0 <= row < n or slot < 0 or not start <= end <= len(content):
            raise ValueError("the recorded edits do not fit the samples")
        edits[row][slot] = content[start:end].decode()
        start = end
    return edits
