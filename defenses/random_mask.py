"""Random masks: a classifier's vote over versions of a text in which most words are hidden, and what that proves.

RanMASK (arXiv 2105.03743) on the bound of randomised ablation (arXiv 1911.09272).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks.errors import UnsupportedError
from ..attacks.text.passage import Passage
from .objectives import BatchLoss, Moment, Objective


def words_kept(words: int, masked: float) -> int:
    """How many of a text's words stay in sight: at least one, where there is one."""
    return min(words, max(1, round((1 - masked) * words)))


def seen_share(words: int, kept: int, changed: int) -> float:
    """Share of all masks that leave at least one of ``changed`` words in sight."""
    return 1 - comb(words - changed, kept) / comb(words, kept)


def certified_words(p: float, words: int, kept: int) -> int:
    """How many substituted words provably leave the vote as it is.

    Masks that hide all substituted words give the same text as before, so the winner's probability falls by at most
    the share of the others. RanMASK's own bound scales that share by an estimate, beta; here beta is 1, which needs no
    assumption.

    Args:
        p: lower bound of the probability that a masked version is given the winning class.
    """
    changed = 0
    while changed < words and p - seen_share(words, kept, changed + 1) > 0.5:
        changed += 1
    return changed


def masked_versions(text: str, masked: float, draws: int, mask: str, rng: np.random.Generator) -> Iterator[str]:
    """Versions of a text in which all words but a uniformly drawn set of :func:`words_kept` are the word ``mask``."""
    passage = Passage.of(text)
    n = len(passage)
    hidden = n - words_kept(n, masked)
    for _ in range(draws):
        slots = rng.permutation(n)[:hidden].tolist()
        yield passage.with_words(dict.fromkeys(slots, mask)).text


@dataclass(frozen=True, slots=True)
class RandomMask:
    """Hides random tokens of each training text and applies ``objective``: what makes a model worth voting with.

    Args:
        objective: the loss on the masked texts.
        masked: probability that a token is hidden.
        mask: id of the mask token.
        special: ids that are never hidden, such as those of padding.
    """

    objective: Objective
    masked: float
    mask: int
    special: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.masked < 1:
            raise UnsupportedError(f"masked is {self.masked}: a share of the words, below 1")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        return self.objective(module, self.hidden(x, moment.generator), y, moment)

    def hidden(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """``x`` ``(n, 3, t)`` or ``(n, t)`` with random tokens replaced by the mask."""
        ids = x[:, 0] if x.dim() == 3 else x
        drawn = (torch.rand(ids.shape, generator=generator) < self.masked).to(x.device)
        drawn &= ~torch.isin(ids, torch.tensor(self.special, dtype=ids.dtype, device=x.device))
        ids = ids.masked_fill(drawn, self.mask)
        return torch.cat([ids[:, None], x[:, 1:]], 1) if x.dim() == 3 else ids
