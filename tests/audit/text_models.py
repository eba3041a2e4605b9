"""A second text model for audits: a factory's module with a tokenizer of its own."""

from __future__ import annotations

import pytest
from auditorch.attacks.text.resources import places


def hide_word_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """What word lists happen to be installed decides no test."""
    monkeypatch.setattr(places, "find_spec", lambda _: None)
    monkeypatch.setattr(places, "_wordnet_places", lambda: iter(()))


FACTORY = """
import torch
from torch import nn

WORDS = {word: i + 2 for i, word in enumerate("good great fine bad awful poor film story".split())}
SCORES = [0.0, 0.0, 2.0, 3.0, 1.0, -2.0, -3.0, -1.0, 0.0, 0.0]


def tokenize(texts):
    rows = [[WORDS.get(w.strip(",.!").lower(), 1) for w in text.split()] for text in texts]
    ids = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 1)
        self.embedding.weight.data = torch.tensor(SCORES)[:, None]

    def forward(self, ids):
        s = self.embedding(ids).sum((1, 2)) - 0.01
        return torch.stack([-s, s], 1) / 2


def build():
    return Bag(), tokenize


def nonsense():
    return Bag(), lambda texts: torch.rand(len(texts), 3)


def pipeline():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    texts = ["good film", "great story", "fine film", "bad film", "awful story", "poor film"]
    return make_pipeline(CountVectorizer(), MultinomialNB()).fit(texts, ["pos"] * 3 + ["neg"] * 3)


def data():
    return ["good film", "awful film", "fine story", "bad story"], [1, 0, 1, 0]
"""
CSV = "text,label,source\n" + "".join(
    f'"{text}",{label},{source}\n'
    for text, label, source in (
        ("this film is good", "positive", "a"),
        ("A great and fine story, told well!", "positive", "a"),
        ("bad sound, awful acting", "negative", "b"),
        ("a poor copy of something", "negative", "b"),
        ("fine", "positive", "a"),
        ("the plot is awful", "negative", "b"),
        ("great music", "positive", "c"),
        ("bad and poor", "negative", "c"),
    )
)
