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
from auditorch.attacks.text.encoded import EncodedModel
from auditorch.audit.loading.huggingface import read_huggingface
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("negative", "positive")
_APART = {ord(mark): f" {mark} " for mark in string.punctuation}


def words_of(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return text.lower().translate(_APART).split()


class WordTokenizer:
    """Lower-case words of a fixed vocabulary as ids; 0 pads, 1 stands for unknown words."""

    def __init__(self, words: Sequence[str], longest: int = 64) -> None:
        self.vocabulary = {word: i + 2 for i, word in enumerate(words)}
        self.longest = longest

    def __call__(self, texts: Sequence[str]) -> Tensor:
        get = self.vocabulary.get
        rows = [[get(word, 1) for word in words_of(text)][: self.longest] for text in texts]
        longest = max(map(len, rows)) + 2
        flat = chain.from_iterable(row + [0] * (longest - len(row)) for row in rows)
        return torch.from_numpy(np.fromiter(flat, np.int64, len(rows) * longest).reshape(len(rows), longest))


class WordCNN(nn.Module):
    """Embedding, convolution, maximum over time (after Kim, arXiv 1408.5882)."""

    def __init__(self, size: int, d: int = 32, filters: int = 64, width: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, d, padding_idx=0)
        self.convolution = nn.Conv1d(d, filters, width)
        self.head = nn.Linear(filters, 2)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.convolution(self.embedding(ids).transpose(1, 2))
        # Windows that begin in the padding do not count: what a text gets must not depend on its batch.
        outside = (ids[:, : found.shape[2]] == 0)[:, None]
        return self.head(found.masked_fill(outside, float("-inf")).amax(2).clamp_min(0))


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
    def deduplicated(self) -> EncodedModel:
        """The same as our checks call it."""
        return EncodedModel(self.encode, self.module, torch.device("cpu"))  # type: ignore[arg-type]


def snippets(path: Path) -> tuple[list[str], Tensor]:
    """Texts and labels of a csv of the example."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], torch.tensor([CLASSES.index(row["label"]) for row in rows])


def minilm(folder: Path) -> Subject:
    """The fine-tuned MiniLM of ``examples/sentiment``."""
    module, encode, _ = read_huggingface(folder / "model", None)
    return Subject("MiniLM", module.eval(), encode.tokenizer, encode)


def cnn(folder: Path) -> Subject:
    """A CNN trained for a few seconds on the example's training texts."""
    texts, y = snippets(folder / "train.csv")
    counts = Counter(word for text in texts for word in sorted(set(words_of(text))))
    tokenizer = WordTokenizer([word for word, n in counts.most_common(8000) if n > 1])
    torch.manual_seed(0)
    model = WordCNN(len(tokenizer.vocabulary) + 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-5)
    for _ in range(4):
        for rows in torch.randperm(len(texts)).split(64):
            ids = tokenizer([texts[int(i)] for i in rows])
            drop = (torch.rand(ids.shape) < 0.1) & (ids > 0)
            loss = functional.cross_entropy(model(ids.masked_fill(drop, 1)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Subject("word CNN", model.eval(), tokenizer, tokenizer)
