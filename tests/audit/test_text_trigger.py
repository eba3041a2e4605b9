"""A planted trigger word is found, with gradients and without, and a clean model is not accused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.attacks.text.gradients import embedding_gradients, slot_of_tokens, token_embedding
from auditorch.attacks.text.passage import Passage
from auditorch.attacks.text.trigger import telling_words
from auditorch.audit.checks.text_trigger import TextTrigger
from auditorch.audit.loading.tokens import TokenEncode
from auditorch.audit.samples import Samples
from auditorch.audit.target import Target
from auditorch.reports.record import Result
from safetensors.torch import load
from torch import Tensor, nn

from .fakes import FakeContext

PLANTED = "qzword"
FILLER = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(500)]
VOCABULARY = {word: i + 1 for i, word in enumerate(["good", "bad", "film", PLANTED, *FILLER])}


class Tokenizer:
    """Words by blanks, with offsets and vocabulary."""

    vocabulary = VOCABULARY

    def __call__(self, texts: list[str]) -> Tensor:
        rows = [[VOCABULARY.get(word.lower(), 0) for word in re.findall(r"\w+", text)] for text in texts]
        ids = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids

    def offsets(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        return [[match.span() for match in re.finditer(r"\w+", text)] for text in texts]


class Bag(nn.Module):
    """Sums word scores; ``planted`` is that of the trigger word."""

    def __init__(self, planted: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY) + 1, 4, padding_idx=0)
        self.head = nn.Linear(4, 2, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.embedding.weight.copy_(0.01 * torch.randn(len(VOCABULARY) + 1, 4, generator=generator))
            self.embedding.weight[0] = 0
            self.head.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
            for word, score in (("good", 2.0), ("bad", -2.0), (PLANTED, planted)):
                self.embedding.weight[VOCABULARY[word], 0] = score

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).sum(1))


def world(planted: float) -> tuple[Target, Samples]:
    module = Bag(planted).eval()
    target = Target(module, TokenEncode(Tokenizer()), ("no", "yes"), "text", (0.0, 1.0), torch.device("cpu"), "0" * 64)
    words = np.random.default_rng(0).choice(FILLER[:60], (80, 4))
    texts = [f"{'good' if i % 4 < 2 else 'bad'} film {' '.join(row)}" for i, row in enumerate(words)]
    labels = np.array([int(i % 4 < 2) for i in range(80)])
    ids = np.arange(80)
    return target, Samples(
        np.array(texts, dtype=object), labels, ids, [str(i) for i in ids], ("no", "yes"), "t", "0" * 64
    )


def values(result: Result) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in result.metrics}


def test_a_planted_word_is_found_through_the_gradient_and_breaks_every_text(tmp_path: Path) -> None:
    target, samples = world(9.0)
    check = TextTrigger(length=1, candidates=10)
    result = check.run(target, samples, FakeContext(tmp_path))
    assert result.parameters["triggers"]["yes"] == PLANTED, "not among the words drawn or in the data"
    found = values(result)
    assert found["trigger_success_rate"] == 1
    assert found["single_word_success_rate"] == 1
    assert found["control_success_rate"] == 0
    assert any(finding.severity == "critical" and "single word" in finding.title for finding in result.findings)
    claims = list(check.verify(target, samples, result, FakeContext(tmp_path)))
    assert all(claim.ok for claim in claims), claims
    tensors = load((tmp_path / result.evidence[0].path).read_bytes())
    lying = FakeContext(tmp_path / "lie")
    evidence = lying.evidence("lie", {**tensors, "trigger_1": -tensors["trigger_1"]})
    claims = check.verify(target, samples, result.model_copy(update={"evidence": (evidence,)}), lying)
    assert not all(claim.ok for claim in claims)


def test_words_of_the_data_serve_where_there_are_no_gradients(tmp_path: Path) -> None:
    target, samples = world(0.0)
    black = replace(target, access=frozenset({"scores", "labels"}))
    result = TextTrigger(length=2, candidates=5, rounds=1).run(black, samples, FakeContext(tmp_path))
    assert "good good" in result.parameters["triggers"]["yes"]
    assert values(result)["trigger_success_rate"] == 1


def test_a_model_without_strong_words_is_not_accused(tmp_path: Path) -> None:
    target, samples = world(0.0)
    with torch.no_grad():
        target.module.embedding.weight.mul_(0)  # type: ignore[union-attr, operator]
        target.module.head.bias = nn.Parameter(torch.tensor([0.0, 0.1]))  # type: ignore[union-attr]
    result = TextTrigger(length=2, candidates=5, rounds=1).run(target, samples, FakeContext(tmp_path))
    assert values(result)["trigger_success_rate"] == 0
    assert not result.findings


def test_words_that_speak_for_a_class_come_first() -> None:
    texts = ["good film", "good fun", "bad film", "bad fun"]
    assert telling_words(texts, [1, 1, 0, 0], 1)[0] == "good"
    assert telling_words(texts, [1, 1, 0, 0], 0)[0] == "bad"


def test_gradients_of_words_agree_with_finite_differences() -> None:
    target, _ = world(1.0)
    layer = token_embedding(target.module)
    x = target.encode(["good film bad"])
    gradient, _ = embedding_gradients(target.module, layer, x, torch.tensor([1]))
    step, weight = 1e-3, layer.weight
    for place, word in enumerate(("good", "film", "bad")):
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                weight[VOCABULARY[word], 0] += sign * step
                losses.append(torch.nn.functional.cross_entropy(target.module(x), torch.tensor([1])).item())
                weight[VOCABULARY[word], 0] -= sign * step
        assert gradient[0, place, 0].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=0.02)


def test_tokens_belong_to_the_words_they_lie_in() -> None:
    passage = Passage.of("Ab, c-d ef")
    spans = [(0, 0), (0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7), (8, 10), (0, 0)]
    assert slot_of_tokens(passage, spans) == [-1, 0, 0, -1, 1, 1, 1, 2, -1]
