"""Random masks: a classifier's vote over versions of a text in which most words are hidden, and what that proves.

RanMASK (arXiv 2105.03743) on the bound of randomised ablation (arXiv 1911.09272).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations
from math import comb, log

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binom
from torch import Tensor, nn

from ..attacks.errors import UnsupportedError
from ..attacks.text.passage import Passage
from .objectives import BatchLoss, Moment, Objective

Mask = NDArray[np.bool_]

_SETS = 20_000
"""Sets of replaced words that are looked at one by one; where there are more, beta is 1."""

_ROWS = 128
"""Versions that :class:`Voted` passes through its body at a time."""


def words_kept(words: int, masked: float) -> int:
    """How many of a text's words stay in sight: at least one, where there is one."""
    return min(words, max(1, round((1 - masked) * words)))


def hidden_share(words: int, kept: int, changed: int) -> float:
    """Share of all masks that hide each of ``changed`` given words."""
    return comb(words - changed, kept) / comb(words, kept)


@dataclass(frozen=True, slots=True)
class Masks:
    """Which words each version of a text shows.

    Attributes:
        seen: bool ``(m, n)``.
        complete: these are all masks there are, each once, so that a vote over them is no estimate.
    """

    seen: Mask
    complete: bool

    @classmethod
    def draw(cls, words: int, kept: int, draws: int, rng: np.random.Generator) -> Masks:
        """``draws`` uniform masks that show ``kept`` of the words; all of them where there are no more."""
        if comb(words, kept) <= draws:
            sets = list(combinations(range(words), kept))
            seen = np.zeros((len(sets), words), dtype=np.bool_)
            np.put_along_axis(seen, np.array(sets, dtype=np.int64).reshape(len(sets), kept), values=True, axis=1)
            return cls(seen, complete=True)
        seen = np.zeros((draws, words), dtype=np.bool_)
        for row in seen:
            row[rng.permutation(words)[:kept]] = True
        return cls(seen, complete=False)

    def versions(self, passage: Passage, mask: str) -> Iterator[str]:
        """The passage with the word ``mask`` for each word that is not shown."""
        for row in self.seen:
            yield passage.with_words(dict.fromkeys(np.flatnonzero(~row).tolist(), mask)).text


@lru_cache(maxsize=512)
def fixed_masks(words: int, kept: int, copies: int) -> Masks:
    """The masks with which a deployed vote answers: one fixed set for all texts of so many words."""
    return Masks.draw(words, kept, copies, np.random.default_rng([words, kept, copies]))


def certified_words(votes: Mask, masks: Masks, alpha: float) -> int:
    """How many words may be replaced, whichever and by whatever, and the vote over all masks stays; -1 if undecided.

    Masks that hide every replaced word give the same version as before. With ``hidden`` their share of all masks, the
    class therefore keeps a probability of at least ``p(right | D hidden) * hidden``, for the set D of replaced words
    that hurts most. In RanMASK's terms this is ``p - beta * (1 - hidden)`` with ``beta = p(right | D in sight)`` on the
    text as it is, which depends on D. The paper takes the mean of beta over random sets, which is no bound, as the
    attacker chooses (see :func:`estimated_words`); here each set has its own lower bound (Clopper-Pearson, from the
    votes that hide it), and the worst counts. All sets must pass, so no set's error adds to another's: for each text
    the answer is too large with probability ``alpha`` at most. With more than 20,000 sets beta is 1 (arXiv 1911.09272).

    Args:
        votes: ``(m,)``, whether each mask's version is given the class, which must not be chosen by these votes unless
            the masks are complete.
    """
    n, kept = masks.seen.shape[1], int(masks.seen[0].sum())
    for changed in range(n + 1):
        hidden = hidden_share(n, kept, changed)
        if hidden <= 0.5 or _kept_share(votes, masks, changed, hidden, alpha) <= 0.5:
            return changed - 1
    return n


def _kept_share(votes: Mask, masks: Masks, changed: int, hidden: float, alpha: float) -> float:
    """Lower bound of the class's share of all masks after ``changed`` words were replaced."""
    n = masks.seen.shape[1]
    if not masks.complete and comb(n, changed) > _SETS:
        return float(_lower(np.array([votes.sum()]), np.array([len(votes)]), alpha)[0]) - (1 - hidden)
    worst, sets = 1.0, combinations(range(n), changed)
    while some := [one for _, one in zip(range(1024), sets, strict=False)]:
        index = np.fromiter(chain.from_iterable(some), np.int64).reshape(len(some), changed)
        out_of_sight = ~masks.seen[:, index].any(2)
        right, drawn = (out_of_sight & votes[:, None]).sum(0), out_of_sight.sum(0)
        share = right / len(votes) if masks.complete else hidden * _lower(right, drawn, alpha)
        worst = min(worst, float(share.min()))
        if worst <= 0.5:
            break
    return worst


def _lower(right: NDArray[np.int64], of: NDArray[np.int64], alpha: float) -> NDArray[np.float64]:
    """Lower ends of one-sided Clopper-Pearson intervals."""
    return np.where(right > 0, betaincinv(np.maximum(right, 0.5), of - right + 1, alpha), 0.0)


def estimated_words(p: float, words: int, kept: int) -> int:
    """What RanMASK itself would report: an estimate, not a certificate.

    It replaces beta by a Monte Carlo mean over random sets of words. That mean is ``p`` exactly: all masks show equally
    many words, so a random set is as likely to be in sight under each. An attacker takes the worst set instead.

    Args:
        p: (lower bound of the) probability that a masked version is given the winning class.
    """
    changed = 0
    while changed < words and p * hidden_share(words, kept, changed + 1) > 0.5:
        changed += 1
    return changed


class Voted(nn.Module):
    """A classifier that answers by the vote of its body over masked versions of a text, or not at all.

    Takes encoded versions ``(n, copies, 3, t)``, those without a token left out, and gives ``(n, k + 1)``: logarithms
    of the shares of the votes, and last how undecided the vote is, the largest of all where a fair coin would explain
    the lead of the first class over the second with probability above ``alpha`` (PREDICT of arXiv 1902.02918). With
    fewer versions than ``copies`` these are all there are, and only a tie is undecided.

    A vote has no gradient. Equal versions, as many as an attacked text has with the one before, are looked at once.
    """

    def __init__(self, body: nn.Module, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 1:
            raise UnsupportedError(f"alpha is {alpha}: it must lie between 0 and 1")
        self.body = body
        self.alpha = alpha

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        n, copies = x.shape[:2]
        versions = x.flatten(0, 1)
        used = versions[:, 1].any(1)
        distinct, place = versions[used].unique(dim=0, return_inverse=True)
        order = distinct[:, 1].sum(1).argsort(stable=True)
        logits = torch.cat([self.body(_trimmed(part)) for part in distinct[order].split(_ROWS)])
        said = torch.empty_like(order).scatter_(0, order, logits.argmax(1))[place]
        owner = torch.arange(n, device=x.device).repeat_interleave(copies)[used]
        counts = torch.zeros(n, logits.shape[1], device=x.device)
        counts.index_put_((owner, said), torch.ones_like(said, dtype=counts.dtype), accumulate=True)
        return ballot(counts.cpu(), used.view(n, copies).sum(1).cpu() < copies, self.alpha).to(logits)


def ballot(counts: Tensor, complete: Tensor, alpha: float) -> Tensor:
    """What :class:`Voted` answers on votes ``(n, k)``; ``complete`` ``(n,)`` says where no vote is left out."""
    first, second = counts.topk(2, dim=1).values.double().unbind(1)
    coin = torch.from_numpy(2 * binom.sf((first - 1).numpy(), (first + second).numpy(), 0.5)).clamp(1e-12, 1)
    chance = torch.where(complete, (first == second).double().clamp_min(1e-12), coin)
    shares = ((counts + 0.5) / (counts.sum(1, keepdim=True) + 0.5 * counts.shape[1])).log()
    undecided = shares.amax(1) + (chance.log() - log(alpha)).to(shares)
    return torch.cat([shares, undecided[:, None]], 1)


def _trimmed(x: Tensor) -> Tensor:
    """Encoded texts ``(n, 3, t)`` without the places that are padding for all of them."""
    return x[:, :, x[:, 1].any(0)]


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
