"""Searches with a memory and in half precision: fewer computations, the same decisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from auditorch.attacks.text.attack import TextAttack
from auditorch.attacks.text.encoded import EncodedModel, quick
from auditorch.attacks.text.engine import attack_texts
from auditorch.attacks.text.passage import Passage
from auditorch.attacks.text.recipes import build
from auditorch.attacks.text.search import Importance
from auditorch.attacks.text.transformations.misspelt import Misspelt
from auditorch.attacks.text.victim import Quick, Raw, Victim
from auditorch.audit.loading.huggingface import read_huggingface
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from .text_world import LABELS, TEXTS, recorder, tiny_bert, word_logits

CPU = torch.device("cpu")


class Letters:
    """Letters as ids, padded with zeros on the right, or on the left."""

    def __init__(self, side: str = "right") -> None:
        self.side = side

    def __call__(self, texts: Sequence[str]) -> Tensor:
        longest = max(map(len, texts))
        rows = [[ord(letter) for letter in text] for text in texts]
        return torch.tensor([self.row(row, longest) for row in rows])

    def row(self, ids: list[int], longest: int) -> list[int]:
        filler = [0] * (longest - len(ids))
        return ids + filler if self.side == "right" else filler + ids

    def filled(self, x: Tensor) -> Tensor:
        return x > 0

    def padded(self, x: Tensor, places: int) -> Tensor:
        rows = [[i for i in row if i] for row in x.tolist()]
        return torch.tensor([self.row(row, max(places, *map(len, rows), 1)) for row in rows])


class Sums:
    """Logits plus and minus the sum of the ids; keeps the shapes that it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        s = x.sum(1).float()
        return torch.stack([s, -s], 1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_memory_answers_what_was_asked_before_whatever_its_padding(side: str) -> None:
    module = Sums()
    model = EncodedModel(Letters(side), module, CPU, memory=10)
    assert model(["ab", "a"])[:, 0].tolist() == [195, 97]
    assert model(["a", "abcd", "ab", "a"])[:, 0].tolist() == [97, 394, 195, 97]
    assert sum(rows for rows, _ in module.shapes) == 3
    plain = EncodedModel(Letters(side), Sums(), CPU)
    assert torch.equal(plain(["a", "ab"]), model(["a", "ab"]))


def test_without_a_memory_each_call_computes_and_a_full_one_forgets() -> None:
    for memory, computed in ((0, 4), (2, 4), (4, 2)):
        module = Sums()
        model = EncodedModel(Letters(), module, CPU, memory=memory)
        for _ in range(2):
            assert model(["a", "b"])[:, 0].tolist() == [97, 98]
        assert model(["c", "d", "e"])[:, 0].tolist() == [99, 100, 101]
        assert sum(rows for rows, _ in module.shapes) == computed + 3


def test_texts_of_similar_length_go_together() -> None:
    module = Sums()
    texts = ["a" * n for n in (9, 1, 8, 2)]
    found = EncodedModel(Letters(), module, CPU, rows=2)(texts)
    assert found[:, 0].tolist() == [97 * len(text) for text in texts]
    assert module.shapes == [(2, 2), (2, 9)]


def test_half_precision_pads_a_text_alike_in_any_company() -> None:
    module = Sums()
    model = EncodedModel(Letters(), module, CPU, precision="bfloat16")
    model(["a" * 3, "a" * 20, "a" * 8])
    model(["b" * 3])
    assert module.shapes == [(2, 8), (1, 24), (1, 8)]


def test_half_precision_needs_to_know_what_is_padding() -> None:
    known, unknown = EncodedModel(Letters(), Sums(), CPU), EncodedModel(lambda _: torch.ones(1, 1), Sums(), CPU)
    assert quick(known, "bfloat16").error > 0
    assert quick(unknown, "bfloat16").error == 0
    assert quick(known, "float32").error == 0


@pytest.mark.parametrize("name", ["deepwordbug", "characters", "typos"])
def test_an_exact_form_changes_no_result(name: str) -> None:
    plain = attack_texts(build(name), word_logits, TEXTS, LABELS, budget=200)
    other = attack_texts(build(name), word_logits, TEXTS, LABELS, budget=200, quick=Quick(word_logits, 0.0))
    assert other.texts == plain.texts
    assert other.queries.tolist() == plain.queries.tolist()


def test_the_model_itself_decides_where_the_quick_form_is_at_the_goal_or_near_it() -> None:
    def hasty(raws: Sequence[Raw]) -> Tensor:
        return torch.tensor([[1.0, -1.0]]).expand(len(raws), 2).clone()

    outcome = attack_texts(build("deepwordbug"), word_logits, TEXTS, LABELS, quick=Quick(hasty, 0.05))
    plain = attack_texts(build("deepwordbug"), word_logits, TEXTS, LABELS)
    assert outcome.success.tolist() == plain.success.tolist()
    assert outcome.texts == plain.texts

    asked, seen = recorder(lambda raws: torch.tensor([[1.0, 0.0]]).expand(len(raws), 2))
    margins = {"far": -0.2, "near": -0.04, "over": 0.5}

    def rough(raws: Sequence[Raw]) -> Tensor:
        return torch.tensor([[1.0, 1.0 - margins[str(raw)]] for raw in raws])

    victim = Victim(asked, ["far"] * 3, [1, 1, 1], quick=Quick(rough, 0.05))
    answers = victim([0, 1, 2], ["far", "near", "over"])
    assert seen == ["near", "over"]
    assert [broken for _, broken in answers] == [False, True, True]
    assert victim.forwards == 5


def test_bfloat16_search_of_a_transformer_is_the_same_at_any_batch_size_and_verified(tmp_path: Path) -> None:
    module, encode, _ = read_huggingface(tiny_bert(tmp_path / "bert"), None)
    model = EncodedModel(encode, module.eval(), CPU)
    attack = build("characters")
    whole = attack_texts(attack, model, TEXTS, LABELS, quick=quick(model, "bfloat16"))
    assert int(whole.success.sum()) >= 3
    for batch_size in (1, 3):
        again = attack_texts(attack, model, TEXTS, LABELS, batch_size=batch_size, quick=quick(model, "bfloat16"))
        assert again.texts == whole.texts
        assert again.queries.tolist() == whole.queries.tolist()
    hits = whole.success.nonzero().flatten().tolist()
    assert (model([whole.texts[i] for i in hits]).argmax(1) != LABELS[hits]).all()


def saliency(known: dict[str, tuple[str, ...]], text: str, budget: int = 200) -> tuple[str, list[str]]:
    asked, seen = recorder(word_logits)
    attack = TextAttack((Misspelt(known),), (), Importance("saliency"))
    outcome = attack_texts(attack, asked, [text], torch.tensor([1]), budget=budget)
    return outcome.texts[0], seen


def test_saliency_is_only_asked_of_words_that_have_edits() -> None:
    _, seen = saliency({"great": ("awful",)}, "this great film")
    assert seen == ["this great film", "this [UNK] film", "this awful film", "this awful film"]


def test_saliency_stops_looking_for_edits_when_those_found_break_the_model_together() -> None:
    known = {"great": ("poor",), "good": ("cat",), "fine": ("tree", "dog", "house", "stone")}
    # 3 + 2 + 1 - 0.5 of "poor": great becomes poor (5 - 4 = 2 left), good becomes neutral (0 left, which breaks).
    text, seen = saliency({**known, "good": ("bad",)}, "great good fine")
    assert text == "poor bad fine"
    assert not any(word in one for one in seen for word in ("tree", "dog", "house", "stone"))
    # Where they do not, all are tried and the rest of the words follows.
    text, seen = saliency({**known, "great": ("fine",), "fine": ("bad",)}, "great good fine")
    assert text == "fine cat bad"


def ranked_alone(text: str, budget: int) -> tuple[bool, list[str]]:
    asked, seen = recorder(word_logits)
    attack = TextAttack((Misspelt({"good": ("house",), "great": ("awful",)}),), (), Importance("alone"))
    outcome = attack_texts(attack, asked, [text], torch.tensor([1]), budget=budget)
    return bool(outcome.success), seen


def test_words_are_ranked_by_what_they_say_alone() -> None:
    success, seen = ranked_alone("a good, great film", 50)
    assert success
    assert sorted(seen[1:5]) == ["a", "film", "good", "great"]
    assert seen[5] == "a good, awful film", "the one that speaks most clearly for the label comes first"


def test_ranking_leaves_half_of_the_budget_to_edits() -> None:
    text = "this is a film about the house that has great rooms"
    success, seen = ranked_alone(text, 8)
    assert success
    assert sorted(seen[1:5]) == ["a", "film", "is", "this"]
    assert seen[5] == text.replace("great", "awful")


@given(st.text(st.characters(codec="ascii"), max_size=40))
def test_plain_english_splits_as_any_other_text(text: str) -> None:
    assert Passage.of(text).words == Passage.of(text + " é").words[:-1]
    assert Passage.of(text).text == text
