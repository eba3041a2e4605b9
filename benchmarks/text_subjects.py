"""Models of movie sentiment for the text benchmark: the example's MiniLM, and a small word-level CNN trained here."""

from __future__ import annotations

import csv
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from auditorch.attacks.text.encoded import EncodedModel, Precision, quick
from auditorch.attacks.text.victim import Quick
from auditorch.audit.loading.huggingface import read_huggingface
from auditorch.audit.loading.tokens import token_encode
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("negative", "positive")
_APART = {ord(mark): f" {mark} " for mark in string.punctuation}
_WIDTHS = (3, 4, 5)
_RARE = "\ufffe"
"""A word of no vocabulary."""


def words_of(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return text.lower().translate(_APART).split()


class _Chunks(dict[str, list[int]]):
    """Ids of what stands between blanks, found once."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        super().__init__({"[UNK]": [1]})
        self.vocabulary = vocabulary

    def __missing__(self, chunk: str) -> list[int]:
        ids = [self.vocabulary.get(word, 1) for word in words_of(chunk.replace("[UNK]", _RARE))]
        self[chunk] = ids
        return ids


class WordTokenizer:
    """Lower-case words of a fixed vocabulary as ids; 0 pads, 1 stands for unknown words and for ``[UNK]``.

    Each text ends in as many places of padding as the widest window can reach over its end.
    """

    def __init__(self, words: Sequence[str], longest: int = 128) -> None:
        self.vocabulary = {word: i + 2 for i, word in enumerate(words)}
        self.longest = longest
        self._known = _Chunks(self.vocabulary)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = [self.ids(text) for text in texts]
        longest = max(map(len, rows)) + max(_WIDTHS) - 1
        flat = chain.from_iterable(row + [0] * (longest - len(row)) for row in rows)
        return torch.from_numpy(np.fromiter(flat, np.int64, len(rows) * longest).reshape(len(rows), longest))

    def ids(self, text: str) -> list[int]:
        """Ids of one text, chunk by chunk between blanks."""
        return list(chain.from_iterable(map(self._known.__getitem__, text.split())))[: self.longest]

    def filled(self, x: Tensor) -> Tensor:
        """Which places are words."""
        return x > 0

    def padded(self, x: Tensor, places: int) -> Tensor:
        """The rows with room for so many words, or for those of the longest."""
        width = max(places, int((x > 0).sum(1).max())) + max(_WIDTHS) - 1
        return functional.pad(x, (0, max(width - x.shape[1], 0)))[:, :width]


class WordCNN(nn.Module):
    """Embedding, a hundred filters of widths 3, 4 and 5 each, maximum over time (Kim, arXiv 1408.5882)."""

    def __init__(self, size: int, d: int = 100, filters: int = 100) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, d, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(d, filters, width) for width in _WIDTHS)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(filters * len(_WIDTHS), 2)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.embedding(ids).transpose(1, 2)
        return self.head(self.drop(torch.cat([self._strongest(one, embedded, ids) for one in self.convolutions], 1)))

    def _strongest(self, convolution: nn.Module, embedded: Tensor, ids: Tensor) -> Tensor:
        found = convolution(embedded)
        # Windows that begin in the padding do not count: what a text gets must not depend on its batch.
        outside = (ids[:, : found.shape[2]] == 0)[:, None]
        return found.masked_fill(outside, float("-inf")).amax(2).clamp_min(0)


@dataclass(frozen=True)
class Subject:
    """A model on raw texts, and what peers need to wrap it themselves."""

    name: str
    module: nn.Module
    tokenizer: object
    encode: object

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits ``(n, 2)``."""
        return self.module(self.encode(list(texts)))  # type: ignore[operator]

    @property
    def model(self) -> EncodedModel:
        """The same as our checks call it."""
        return EncodedModel(self.encode, self.module, torch.device("cpu"))  # type: ignore[arg-type]

    def quick(self, precision: Precision) -> Quick:
        """The same as our checks search with."""
        return quick(self.model, precision)


def snippets(path: Path) -> tuple[list[str], Tensor]:
    """Texts and labels of a csv of the example."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], torch.tensor([CLASSES.index(row["label"]) for row in rows])


def minilm(folder: Path) -> Subject:
    """The fine-tuned MiniLM of ``examples/sentiment``."""
    module, encode, _ = read_huggingface(folder / "model", None)
    return Subject("MiniLM", module.eval().requires_grad_(False), encode.tokenizer, encode)


def cnn(folder: Path) -> Subject:
    """A CNN trained for half a minute on the example's training texts."""
    texts, y = snippets(folder / "train.csv")
    counts = Counter(word for text in texts for word in sorted(set(words_of(text))))
    tokenizer = WordTokenizer([word for word, n in counts.most_common(8000) if n > 1])
    torch.manual_seed(0)
    model = WordCNN(len(tokenizer.vocabulary) + 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    for _ in range(4):
        for rows in torch.randperm(len(texts)).split(64):
            loss = functional.cross_entropy(model(tokenizer([texts[int(i)] for i in rows])), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Subject("word CNN", model.eval().requires_grad_(False), tokenizer, token_encode(tokenizer))
