"""The guard of labels lets through what a reader takes for the same, and nothing that turns a label round."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.text.attack import TextAttack
from auditorch.attacks.text.constraints.label import NEGATIONS, LabelPreserving
from auditorch.attacks.text.engine import attack_texts
from auditorch.attacks.text.passage import Passage
from auditorch.attacks.text.recipes import GUARDED, Limits, Resources, build, guard_of
from auditorch.attacks.text.resources.lexicon import polarity
from auditorch.attacks.text.resources.places import lexicon_file
from auditorch.attacks.text.search import Greedy
from auditorch.attacks.text.transformations.hotflip import HotFlip
from auditorch.attacks.text.transformations.misspelt import Misspelt
from auditorch.attacks.text.victim import Raw
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_text_attacks import wordnet_files
from .text_world import word_logits

WORD = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
OPPOSITES = ({"hot", "cold"}, {"good", "bad"})
LEXICON = {"good": 1.9, "great": 3.1, "bad": -2.5, "awful": -2.0, "so-so": 0.2}
FULL = LabelPreserving(
    lambda a, b: {a, b} in OPPOSITES,
    LEXICON,
    lambda word: word in {"hot", "cold", "now", "gold", "film", "movie", "great", "good", "bad", "awful", "press"},
)


@pytest.mark.parametrize(
    ("word", "other", "fits"),
    [
        ("film", "movie", True),
        # negations: neither put in, nor taken away, nor turned into another word; one for another is the same
        ("film", "not film", False),
        ("not", "", False),
        ("not", "now", False),
        ("Never", "not", True),
        ("can't", "can", False),
        ("can’t", "cannot", True),
        ("don't", "DONT", True),
        ("hardly", "easily", False),
        ("is", "isn't", False),
        ("不", "很", False),
        ("电", "不", False),
        # numbers, whatever the digits
        ("3", "4", False),
        ("3", "three", True),
        ("３", "3", True),
        ("٣", "3", True),
        ("seven", "several", False),
        ("007", "7", False),
        ("12", "1 2", False),
        ("a12", "a1 2", False),
        # opposites by an affix, by the dictionary, by the lexicon
        ("happy", "unhappy", False),
        ("impossible", "possible", False),
        ("careful", "careless", False),
        ("harm", "harmless", False),
        ("is", "his", True),
        ("hot", "cold", False),
        ("hot", "warm", True),
        ("good", "great", True),
        ("good", "awful", False),
        ("good", "film", False),
        ("film", "awful", False),
        ("so-so", "film", True),
        # what reads the same, and misspellings of it
        ("good", "g ood", True),
        ("good", "go\u200bod", True),
        ("good", "GOOD", True),
        ("good", "goood", True),
        ("not", "nt", True),
        ("good", "gold", False),
        ("good", "", False),
        ("2010", "2O10", False),
    ],
)
def test_known_answers(word: str, other: str, fits: bool) -> None:
    assert FULL.fits(word, other) is fits
    text = Passage.of(f"The film is {word} !")
    if len(text) == 4:
        assert FULL.allows(text, text.with_word(3, other)) is fits


def test_without_resources_it_looks_at_what_needs_none() -> None:
    bare = LabelPreserving()
    assert bare.parts == ("negations", "numbers", "opposites")
    assert bare.fits("hot", "cold")
    assert bare.fits("good", "awful")
    assert not bare.fits("happy", "unhappy")
    assert not bare.fits("not", "nt"), "without a dictionary a misspelling is another word"
    assert FULL.parts == (*bare.parts, "antonyms", "polarity")
    assert FULL.only(bare.parts).fits("good", "awful")
    assert not FULL.fits("good", "awful"), "the answers of one guard are not those of another"
    with pytest.raises(UnsupportedError, match="antonyms"):
        bare.only(("negations", "antonyms"))


@given(WORD, WORD)
@settings(max_examples=200, deadline=None)
def test_the_guard_is_symmetrical_and_lets_a_word_stand(word: str, other: str) -> None:
    bare = LabelPreserving(lambda a, b: {a, b} in OPPOSITES, LEXICON)
    assert bare.fits(word, word)
    assert bare.fits(word, other) == bare.fits(other, word)
    assert bare.fits(word.casefold(), other) == bare.fits(word, other)
    assert not bare.fits(word, f"{word} not {other}") or not bare.fits(word, other)
    assert bare.fits(f"{word} 1234567890123", f"{other} 3210987654321") is False  # longer than any word here


@given(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    st.sampled_from(("words", "characters", "deepwordbug", "typos", "homoglyphs", "invisible", "distractors")),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_no_guarded_attack_changes_negations_or_numbers(text: str, name: str, seed: int) -> None:
    rng = random.Random(seed)
    mixed = " ".join(part for word in text.split() for part in (word, rng.choice(("not", "never", "3", "x"))))
    if name == "words":
        pool = (*sorted(NEGATIONS), "seven", "42", "well not", "")
        edits = Misspelt({word.lower(): pool for word in Passage.of(mixed).words})
        attack = TextAttack((edits,), (LabelPreserving(),), Greedy())
    else:
        attack = build(name, limits=Limits(label_preserving=True))

    def model(raws: Sequence[Raw]) -> torch.Tensor:
        """Errs when a negation or a number has gone or come: what only a broken guard lets happen."""
        errs = torch.tensor([float(_decisive(str(raw)) != _decisive(mixed)) for raw in raws])
        return torch.stack([1 - 2 * errs, 2 * errs - 1], 1)

    outcome = attack_texts(attack, model, [mixed], torch.tensor([0]), budget=60, seed=seed)
    assert not outcome.success.any(), outcome.texts


def _decisive(text: str) -> Counter[str]:
    """Negations, all alike, and numbers among the words of a text as a reader sees it."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c) != "Cf")
    negations = ["not" for word in Passage.of(seen).words if word in NEGATIONS]
    return Counter(negations) + Counter(re.findall(r"\d+", seen))


def test_gradient_attacks_look_further_for_words_that_fit() -> None:
    words = ("awful", "bad", "film", "movie", "great")
    vectors = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]])
    original = Passage.of("good")

    def proposed(edit: HotFlip) -> list[str]:
        asking = edit.propose(original, [0], random.Random(0))
        next(asking)
        with pytest.raises(StopIteration) as end:
            asking.send([torch.ones(1, 1)])
        return list(end.value.value[0])

    assert proposed(HotFlip(words, vectors, most=2)) == ["awful", "bad"]
    assert proposed(HotFlip(words, vectors, most=2, fits=FULL.fits)) == ["great"]


def test_which_attacks_are_guarded(tmp_path: Path) -> None:
    folder = wordnet_files(tmp_path / "dict")
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("good\t1.9\t0.5\nbad\t-2\nodd\tx\n\nnone\tnan\n")
    assert polarity(lexicon) == {"good": 1.9, "bad": -2.0}
    resources = Resources(wordnet=folder, lexicon=lexicon, words=lambda: (("good",), torch.ones(1, 2)))
    for name in ("hotflip", "gbda", "masked"):
        assert name in GUARDED
        guard = guard_of(build(name, resources))
        assert guard is not None
        assert guard.parts == ("negations", "numbers", "opposites", "antonyms", "polarity")
        assert not guard.fits("fine", "awful"), "opposed by WordNet's clusters"
        assert guard_of(build(name, resources, Limits(label_preserving=False))) is None
    assert guard_of(build("pwws", resources)) is None
    assert guard_of(build("pwws", resources, Limits(label_preserving=True))) is not None
    with pytest.raises(UnsupportedError, match="vaderSentiment"):
        lexicon_file(tmp_path / "none.txt")
    with pytest.raises(UnsupportedError, match="lexicon"):
        build("gbda", Resources(lexicon=tmp_path / "none.txt"))


def test_a_guarded_attack_finds_what_is_left(tmp_path: Path) -> None:
    """Of the two words that break the model one is an antonym: only the other is used."""
    resources = Resources(wordnet=wordnet_files(tmp_path / "dict"))
    edits = Misspelt({"good": ("bad", "movie")})
    for guarded, expected in ((False, "bad film"), (True, "movie film")):
        constraints = (resources.label_preserving(),) if guarded else ()
        attack = TextAttack((edits,), constraints, Greedy())
        outcome = attack_texts(attack, word_logits, ["good film"], torch.tensor([1]))
        assert outcome.texts == [expected]
