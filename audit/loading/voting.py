"""Texts as masked versions, for a model that votes over them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...attacks.text.passage import Passage
from ...defenses.random_mask import Voted, fixed_masks, words_kept
from ..target import Target
from .tokens import HuggingFaceEncode, as_texts

UNDECIDED = "(undecided)"
"""Name of the answer that is none; it comes after the classes."""


@dataclass(frozen=True, slots=True)
class VotingEncode:
    """Texts, or pairs, as int64 ``(n, copies, 3, t)``: versions in which most words are hidden.

    The masks are one fixed set for all texts of the same number of words, so that answers repeat and an attacker who
    replaces words faces the same vote. A text with fewer masks than ``copies`` has all of them; the rest is zero.

    Attributes:
        plain: encodes a version.
        masked: share of the words hidden.
        column: which text of a pair is masked.
    """

    plain: HuggingFaceEncode = field(repr=False)
    masked: float
    copies: int
    column: int = 1

    @property
    def mask(self) -> str:
        """The word that hides."""
        return self.plain.tokenizer.mask_token

    def __call__(self, raw: Any, /) -> Tensor:
        texts = as_texts(raw)
        versions = [self._versions(text) for text in texts]
        encoded = self.plain([version for some in versions for version in some])
        places = [row * self.copies + i for row, some in enumerate(versions) for i in range(len(some))]
        x = encoded.new_zeros(len(texts) * self.copies, *encoded.shape[1:])
        x[torch.tensor(places, dtype=torch.int64)] = encoded
        return x.view(len(texts), self.copies, *encoded.shape[1:])

    def trimmed(self, x: Tensor) -> Tensor:
        """Encoded texts without the places that are padding for all of them."""
        return x[..., x[:, :, 1].flatten(0, 1).any(0)]

    def _versions(self, raw: Any) -> list[Any]:
        passage = Passage.of(raw if isinstance(raw, str) else raw[self.column])
        masks = fixed_masks(len(passage), words_kept(len(passage), self.masked), self.copies)
        texts = list(masks.versions(passage, self.mask))
        if isinstance(raw, str):
            return texts
        return [(text, raw[1]) if self.column == 0 else (raw[0], text) for text in texts]


def voting(target: Target, encode: VotingEncode) -> Target:
    """A target whose module is a :class:`Voted` with what it is given, and with the answer that is none."""
    access = target.access - {"gradients"}
    return replace(target, encode=encode, classes=(*target.classes, UNDECIDED), access=access)


def voter(target: Target) -> Target:
    """The target that a voting one asks about each version; itself where it does not vote."""
    if not isinstance(target.encode, VotingEncode) or not isinstance(target.module, Voted):
        return target
    return replace(target, encode=target.encode.plain, module=target.module.body, classes=target.classes[:-1])
