"""GBDA: a distribution over words found by gradient descent (Guo et al., arXiv 2104.13733)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..streams import Streams
from .case import Case, Judged, best
from .gradients import Offsets, embedded, slot_of_tokens, token_embedding
from .requests import Asking, Request
from .scheduler import in_batches
from .victim import Victim


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Asks the service ``relaxed`` for word choices, judges each, and takes back what is not needed.

    Every sample of the distribution is tried as a plain string. Where none of them is allowed and breaks the model,
    its edits are tried one by one, those drawn most often first. From a text that breaks the model edits are taken back
    for as long as it stays broken.
    """

    def run(self, case: Case) -> Asking[Judged]:
        original = case.start.passage
        (drawn,) = yield Request("relaxed", [(original, case.slots)])
        versions = [original.with_words(choice) for choice in drawn if choice]
        allowed = yield from case.allowed(list(dict.fromkeys(versions)))
        tried = yield from case.judge(allowed)
        top = best([case.start, *tried])
        assert top is not None
        if not top.broken:
            top = yield from _one_by_one(case, top, drawn)
        if not top.broken:
            return top
        for slot in original.changed(top.passage):
            back = yield from case.allowed([top.passage.with_word(slot, original.words[slot])])
            judged = yield from case.judge(back)
            if judged and judged[0].broken:
                top = judged[0]
        return top


def _one_by_one(case: Case, top: Judged, drawn: Sequence[dict[int, str]]) -> Asking[Judged]:
    """Adds edits of the samples to the best version so far, slot by slot, as long as they help."""
    votes = Counter((slot, word) for choice in drawn for slot, word in choice.items())
    options: dict[int, list[str]] = {}
    for (slot, word), _ in votes.most_common():
        options.setdefault(slot, []).append(word)
    for slot, words in options.items():
        allowed = yield from case.allowed([top.passage.with_word(slot, word) for word in words[:3]])
        found = best((yield from case.judge(allowed)))
        if found is not None and (found.broken or found.score > top.score):
            top = found
        if top.broken:
            break
    return top


@dataclass(slots=True)
class RelaxedService:
    """Optimises, for a batch of passages, one distribution a word over a few candidate words.

    Candidates are the words along the gradient at the start (as HotFlip's) and the word itself. Words of several
    tokens stay as they are.

    Attributes:
        words, vectors: whole words of the vocabulary and their embeddings ``(len(words), d)``.
        steps: gradient steps of Adam.
        candidates: other words in the running for a place.
        draws: word choices sampled from the distribution.
        keep: weight of the share of words that change, in the loss.
        margin: the loss stops pushing when the model errs by so many logits.
        fits: which words may take the place of which (word, other); None: any.
    """

    module: nn.Module
    victim: Victim
    encode: Callable[[Any], Tensor]
    offsets: Offsets
    words: tuple[str, ...]
    vectors: Tensor
    seed: int = 0
    ids: Sequence[int] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    steps: int = 20
    candidates: int = 24
    draws: int = 24
    keep: float = 1.0
    margin: float = 3.0
    batch_size: int = 32
    lr: float = 0.3
    fits: Callable[[str, str], bool] | None = None

    def __call__(self, rows: Sequence[int], items: Sequence[Any]) -> list[list[dict[int, str]]]:
        answers: list[list[dict[int, str]]] = [[] for _ in items]
        for batch in in_batches([len(passage.text) for passage, _ in items], self.batch_size):
            for i, found in zip(
                batch, self._optimised([rows[i] for i in batch], [items[i] for i in batch]), strict=True
            ):
                answers[i] = found
        return answers

    def _optimised(self, rows: Sequence[int], items: Sequence[Any]) -> list[list[dict[int, str]]]:
        raws = [self.victim.compose(row, passage.text) for row, (passage, _) in zip(rows, items, strict=True)]
        x = self.encode(raws).to(self.device)
        spans = self.offsets(raws, self.victim.column)
        if spans is None:
            return [[] for _ in items]
        layer = token_embedding(self.module)
        goal = torch.tensor([self.victim.goals[row] for row in rows], device=self.device)
        tokens = [_free_tokens(passage, set(slots), own) for (passage, slots), own in zip(items, spans, strict=True)]
        places = [(b, t, slot) for b, own in enumerate(tokens) for t, slot in own]
        if not places:
            return [[] for _ in items]
        at = (torch.tensor([b for b, _, _ in places]), torch.tensor([t for _, t, _ in places]))
        start, gradient = self._start(layer, x, goal)
        own = [items[b][0].words[slot] for b, _, slot in places]
        options = self._options(gradient[at], own)
        table = torch.cat([start[at][:, None], self.vectors.to(self.device)[options]], 1)  # (m, 1 + candidates, d)
        theta = torch.zeros(table.shape[:2], device=self.device)
        theta[:, 0] = 3.0
        theta.requires_grad_()
        keys = torch.tensor([self.ids[row] if self.ids else row for row in rows])
        streams = Streams.from_seed(self.seed, keys)
        self._descend(theta, table, at, x, goal, layer, streams)
        return self._drawn(theta.detach(), options, places, len(items), streams)

    def _start(self, layer: nn.Embedding, x: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        taken: list[Tensor] = []

        def leaf(output: Tensor) -> Tensor:
            taken.append(output.detach().requires_grad_())
            return taken[-1]

        with embedded(layer, leaf), torch.enable_grad():
            loss = self._push(self.module(x).float(), goal).sum()
            (gradient,) = torch.autograd.grad(loss, taken[:1])
        return taken[0].detach(), gradient

    def _push(self, logits: Tensor, goal: Tensor) -> Tensor:
        """Hinge ``(n,)`` that falls until the model errs (or reaches the target) by the margin."""
        own = logits.gather(1, goal[:, None])[:, 0]
        rest = logits.scatter(1, goal[:, None], float("-inf")).amax(1)
        gap = (rest - own) if self.victim.targeted else (own - rest)
        return (gap + self.margin).clamp_min(0)

    def _options(self, gradient: Tensor, own: Sequence[str]) -> Tensor:
        """Positions ``(m, candidates)`` in ``words`` of those whose exchange lowers the loss most, to first order.

        Where too few fit the place, the last that does is repeated; where none does, the likeliest is left in for the
        constraints to refuse.
        """
        gain = -(gradient @ self.vectors.to(self.device).T)
        steps = (gain / gain.abs().amax(1, keepdim=True).clamp_min(1e-12) * 1e4).round()
        order = steps.argsort(dim=1, descending=True, stable=True)
        if self.fits is None:
            return order[:, : self.candidates]
        rows = []
        for word, places in zip(own, order[:, : 30 * self.candidates].tolist(), strict=True):
            fitting = list(islice((i for i in places if self.fits(word, self.words[i])), self.candidates))
            fitting = fitting or places[:1]
            rows.append(fitting + fitting[-1:] * (min(self.candidates, len(self.words)) - len(fitting)))
        return torch.tensor(rows, device=gradient.device)

    def _descend(
        self,
        theta: Tensor,
        table: Tensor,
        at: tuple[Tensor, Tensor],
        x: Tensor,
        goal: Tensor,
        layer: nn.Embedding,
        streams: Streams,
    ) -> None:
        optimizer = torch.optim.Adam([theta], lr=self.lr)
        sizes = torch.bincount(at[0], minlength=len(x)).to(self.device)
        for _ in range(self.steps):
            gumbel = self._gumbel(streams, at, table.shape[1])
            soft = functional.softmax(theta + gumbel, 1)
            mixed = (soft[:, :, None] * table).sum(1)
            with embedded(layer, lambda output, mixed=mixed: output.index_put(at, mixed.to(output.dtype))):
                push = self._push(self.module(x).float(), goal)
            changed = torch.zeros(len(x), device=self.device).index_add(0, at[0].to(self.device), 1 - soft[:, 0])
            loss = (push + self.keep * changed / sizes.clamp_min(1)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _gumbel(self, streams: Streams, at: tuple[Tensor, Tensor], width: int) -> Tensor:
        """Gumbel noise ``(m, width)`` that belongs to each sample and each of its places."""
        most = int(torch.bincount(at[0]).max())
        uniform = streams.uniform((most, width)).clamp(1e-6, 1 - 1e-6)
        nth = torch.cat([torch.arange(int(n)) for n in torch.bincount(at[0], minlength=len(streams)).tolist()])
        return -torch.log(-torch.log(uniform[at[0], nth])).to(self.device)

    def _drawn(
        self, theta: Tensor, options: Tensor, places: Sequence[tuple[int, int, int]], n: int, streams: Streams
    ) -> list[list[dict[int, str]]]:
        at = (torch.tensor([b for b, _, _ in places]), torch.tensor([t for _, t, _ in places]))
        found: list[list[dict[int, str]]] = [[] for _ in range(n)]
        for draw in range(self.draws):
            noise = 0 if draw == 0 else self._gumbel(streams, at, theta.shape[1])
            choice = ((theta + noise) * 1e3).round().argmax(1).tolist()
            versions: list[dict[int, str]] = [{} for _ in range(n)]
            for (b, _, slot), picked, row in zip(places, choice, options.tolist(), strict=True):
                if picked:
                    versions[b][slot] = self.words[row[picked - 1]]
            for own, version in zip(found, versions, strict=True):
                if version and version not in own:
                    own.append(version)
        # Where the distribution stays with the original, each place's likeliest other words are worth a try alone.
        ahead = (theta[:, 1:] * 1e3).round().argsort(dim=1, descending=True, stable=True)[:, :2].tolist()
        for (b, _, slot), other, row in zip(places, ahead, options.tolist(), strict=True):
            found[b] += [{slot: self.words[row[i]]} for i in other]
        return found


def _free_tokens(passage: Any, slots: set[int], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Position and slot of the tokens that are a whole editable word."""
    owner = slot_of_tokens(passage, spans)
    counts: dict[int, int] = {}
    for slot in owner:
        counts[slot] = counts.get(slot, 0) + 1
    return [(t, slot) for t, slot in enumerate(owner) if slot in slots and counts[slot] == 1]
