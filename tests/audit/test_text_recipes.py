"""Attacks that need resources, from `auditorch run` to `auditorch verify`, on worlds whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.text.attack import TextAttack
from auditorch.attacks.text.constraints.label import PARTS
from auditorch.attacks.text.passage import Passage
from auditorch.attacks.text.recipes import Resources, guard_of
from auditorch.attacks.text.resources import places
from auditorch.audit.checks.text_attribution import TextAttribution
from auditorch.audit.checks.text_constraints import as_guarded, recipe_of
from auditorch.audit.checks.text_evasion import TextEvasion
from auditorch.audit.checks.text_evidence import unpack_edits
from auditorch.audit.checks.text_resources import language_model, masked_model, sentence_encoder
from auditorch.audit.cli import main
from auditorch.audit.errors import ModelError
from auditorch.audit.variants.text_augmentation import TextAugmentationVariant
from auditorch.reports.record import AuditRecord, Excerpts, Result
from auditorch.reports.schema import read_record
from click.testing import CliRunner
from safetensors.torch import load

from .text_models import hide_word_lists
from .tiny_language import (
    SPECIAL,
    WORDS,
    write_encoder,
    write_gpt2,
    write_masked,
    write_model,
    write_tokenizer,
    write_vectors,
    write_wordnet,
)

pytest.importorskip("transformers")
CPU = torch.device("cpu")
TEXTS = ("this film is splendid", "a splendid story", "Splendid music!", "the old house", "a slow plot")
NEAR = {"splendid": {"dreadful": 0.97, "marvellous": 0.9, "grand": 0.8}}
SCORE = '2 * has["splendid"] - 1 - 2 * has["dreadful"] - 0.5 * has["grand"]'
"""Positive with ``splendid`` alone; any other word in its place is negative, ``dreadful`` by most."""


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resources")
    write_vectors(folder / "vectors", NEAR)
    write_wordnet(folder / "wordnet", [("splendid", "dreadful")])
    write_encoder(folder / "encoder", [("splendid", "marvellous")])
    write_gpt2(folder / "gpt2", {"grand": -9.0})
    (folder / "lexicon.txt").write_text("splendid\t2.8\ndreadful\t-2\nmarvellous\t3\n")
    return folder


Audit = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_word_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_word_lists(monkeypatch)


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """Runs the check through the command line, verifies the record, and gives the check's result."""

    def run(score: str = SCORE, texts: tuple[str, ...] = TEXTS, **options: Any) -> Result:
        write_model(tmp_path, score)
        rows = "".join(f'"{text}",{"positive" if "splendid" in text.lower() else "negative"}\n' for text in texts)
        (tmp_path / "test.csv").write_text("text,label\n" + rows)
        spec = {
            "version": 1,
            "model": {"factory": "model.py:build", "modality": "text"},
            "data": {"source": "test.csv", "classes": ["negative", "positive"]},
            "checks": [{"text_evasion": options}],
        }
        (tmp_path / "audit.yaml").write_text(yaml.safe_dump(spec))
        out = tmp_path / "out"
        done = CliRunner().invoke(main, ["run", str(tmp_path / "audit.yaml"), "-o", str(out), "--quiet", "--fresh"])
        assert done.exit_code == 0, done.output
        checked = CliRunner().invoke(main, ["verify", str(out)])
        assert checked.exit_code == 0, checked.output
        assert "adversarial texts keep every constraint" in checked.output
        return _record(out).variants[0].results[0]

    return run


def _record(out: Path) -> AuditRecord:
    record = read_record(out / "audit.json")
    assert record.variants[0].results[0].status == "ok", record.variants[0].results[0].error
    return record


def edits(result: Result, folder: Path) -> list[dict[int, str]]:
    tensors = load((folder / "out" / result.evidence[0].path).read_bytes())
    return unpack_edits(tensors, len(tensors["labels"]))


def success(result: Result) -> tuple[float | None, int | None]:
    metric = result.metric("attack_success_rate")
    assert metric is not None
    return metric.value, metric.n


def test_textfooler_finds_the_planted_synonym_and_no_antonym(audit: Audit, resources: Path, tmp_path: Path) -> None:
    given = {"vectors": str(resources / "vectors"), "wordnet": str(resources / "wordnet")}
    result = audit(attack="textfooler", **given)
    # Of two synonyms that break the model, the one that moves its odds most. Negative texts have none.
    assert edits(result, tmp_path) == [{3: "grand"}, {1: "grand"}, {0: "Grand"}, {}, {}]
    assert success(result) == (pytest.approx(3 / 5), 5)
    assert result.parameters["recipe"]["label_preserving"] == "negations, numbers, opposites, antonyms"
    assert "LabelPreserving" in result.parameters["recipe"]["constraints"]
    assert any("polarity" in warning for warning in result.warnings)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert '<mark class="edit"><bdi>grand</bdi></mark>' in page
    assert "LabelPreserving" in page


def test_the_lexicon_keeps_praise_praise(audit: Audit, resources: Path, tmp_path: Path) -> None:
    given = {"vectors": str(resources / "vectors"), "wordnet": str(resources / "wordnet")}
    result = audit(attack="textfooler", lexicon=str(resources / "lexicon.txt"), **given)
    assert edits(result, tmp_path)[0] == {3: "marvellous"}, "of grand the lexicon knows no praise"
    assert result.parameters["recipe"]["label_preserving"].endswith("antonyms, polarity")
    assert not result.warnings


def test_the_sentence_encoder_refuses_what_it_finds_different(audit: Audit, resources: Path, tmp_path: Path) -> None:
    given = {"vectors": str(resources / "vectors"), "wordnet": str(resources / "wordnet")}
    result = audit(attack="textfooler", encoder=str(resources / "encoder"), **given, similarity=0.95)
    assert edits(result, tmp_path)[0] == {3: "marvellous"}
    meaning = result.metric("meaning")
    assert meaning is not None
    assert meaning.value == pytest.approx(1, abs=1e-3)
    # Without a number of its own the guard asks for 0.8: three of four words and both ends are more than that alike.
    loose = audit(attack="textfooler", encoder=str(resources / "encoder"), **given)
    assert "Similarity" in loose.parameters["recipe"]["constraints"]
    assert edits(loose, tmp_path)[0] == {3: "grand"}
    assert edits(loose, tmp_path)[2] == {0: "Marvellous"}, "of two words one is too much"
    free = audit(attack="textfooler", encoder=str(resources / "encoder"), **given, label_preserving=False)
    assert "Similarity" not in free.parameters["recipe"]["constraints"]


def test_the_language_model_refuses_what_reads_badly(audit: Audit, resources: Path, tmp_path: Path) -> None:
    given = {"vectors": str(resources / "vectors"), "wordnet": str(resources / "wordnet")}
    result = audit(attack="textfooler", language_model=str(resources / "gpt2"), fluency=1.0, **given)
    assert edits(result, tmp_path)[0] == {3: "marvellous"}, "grand costs nine nats, three a token"
    assert "Fluency" in result.parameters["recipe"]["constraints"]


def test_masked_proposes_what_its_language_model_finds_likely(audit: Audit, resources: Path, tmp_path: Path) -> None:
    score = '2 - 4 * has["quiet"]'
    texts = ("this splendid film", "a splendid story with music")
    likely = write_masked(tmp_path / "likely", {"quiet": 30.0})
    result = audit(score, texts, attack="masked", masked_model=str(likely), wordnet=str(resources / "wordnet"))
    assert success(result) == (1.0, 2)
    assert [set(own.values()) for own in edits(result, tmp_path)] == [{"quiet"}, {"quiet"}]
    never = write_masked(tmp_path / "never", {"quiet": -30.0})
    result = audit(score, texts, attack="masked", masked_model=str(never), wordnet=str(resources / "wordnet"))
    assert success(result) == (0.0, 2)
    # The antonym is likely too, and alone would break the model: the guard refuses it in the place of its opposite.
    opposite = write_masked(tmp_path / "opposite", {"dreadful": 30.0})
    score = '1 + has["splendid"] - 9 * has["dreadful"]'
    given = {"attack": "masked", "masked_model": str(opposite), "protect": ["a", "story"]}
    guarded = audit(score, ("a splendid story",), wordnet=str(resources / "wordnet"), **given)
    assert success(guarded) == (0.0, 1)
    assert success(audit(score, ("a splendid story",), label_preserving=False, **given)) == (1.0, 1)


def test_genetic_finds_a_pair_of_words_that_greedy_cannot(audit: Audit, resources: Path, tmp_path: Path) -> None:
    """Either word alone makes the model surer; both together break it."""
    pair = '(1 + has["marvellous"] + has["quiet"] - 9 * has["marvellous"] * has["quiet"])'
    texts = ("the splendid old film of a calm river told this long story",) * 3
    vectors = write_vectors(tmp_path / "vectors", {"splendid": {"marvellous": 0.9}, "calm": {"quiet": 0.9}})
    given = {"vectors": str(vectors), "wordnet": str(resources / "wordnet"), "queries": 200}
    found = audit(pair, texts, attack="genetic", **given)
    assert success(found) == (1.0, 3)
    assert edits(found, tmp_path) == [{1: "marvellous", 6: "quiet"}] * 3
    shown = next(figure for figure in found.figures if isinstance(figure, Excerpts))
    assert [before.text for before, _ in (item.texts for item in shown.items)] == list(texts)
    assert success(audit(pair, texts, attack="genetic", search="greedy", **given)) == (0.0, 3)
    assert success(audit(pair, texts, attack="genetic", search="importance", **given)) == (0.0, 3)


def test_a_record_is_verified_with_the_guard_it_was_made_with(resources: Path) -> None:
    """A lexicon that only the verifier has refutes no record; a guard that it lacks is said to be missing."""
    known = Resources(wordnet=resources / "wordnet", lexicon=resources / "lexicon.txt")
    here = TextAttack((), (known.label_preserving(),))
    recorded = recipe_of(TextAttack((), (replace(known, lexicon=None).label_preserving().only(PARTS[:4]),)))
    again = guard_of(as_guarded(here, {"recipe": recorded}))
    assert again is not None
    assert again.parts == PARTS[:4]
    assert again.fits("splendid", "grand")
    assert not known.label_preserving().fits("splendid", "grand")
    assert guard_of(as_guarded(here, {})) is None, "a record from before there was a guard"
    with pytest.raises(UnsupportedError, match="polarity"):
        as_guarded(TextAttack((), (again,)), {"recipe": recipe_of(here)})


# The loaders


def test_losses_of_the_language_model_are_those_of_its_unigrams(resources: Path) -> None:
    total = len(SPECIAL) + len(WORDS) - 1 + math.exp(-9)
    lm = language_model(resources / "gpt2", CPU)
    texts = ["a film", "a grand film", "", "film", "a film is a film is a film"]
    expected = [math.log(total), math.log(total) + 4.5, 0, 0, math.log(total)]
    assert lm([0] * 5, texts) == pytest.approx(expected, abs=1e-3)
    assert lm([0], [""]) == [0], "also when a batch holds nothing else"


def test_a_language_model_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path / "gpt2", {}, pad=False)
    lm = language_model(folder, CPU)
    assert lm([0, 0], ["a film", "a film is a film"]) == pytest.approx(
        [math.log(len(SPECIAL) + len(WORDS))] * 2, abs=1e-3
    )


def test_embeddings_are_means_over_the_tokens_that_are_not_padding(resources: Path) -> None:
    encoder = sentence_encoder(resources / "encoder", CPU, batch_size=8)
    alone = sentence_encoder(resources / "encoder", CPU, batch_size=1)
    texts = ["a splendid film", "a marvellous film", "a dreadful film", "", "film " * 300]
    together, apart = (torch.stack(one([0] * len(texts), texts)) for one in (encoder, alone))
    assert torch.allclose(together, apart, atol=1e-5), "padding has no part in the mean"
    cosine = torch.nn.functional.cosine_similarity(together[:1], together[1:3])
    assert cosine[0] == pytest.approx(1, abs=1e-5)
    assert cosine[1] == pytest.approx(0.8, abs=0.02), "four of five tokens are the same"


def test_masked_words_come_in_the_order_of_their_likelihood(tmp_path: Path) -> None:
    service = masked_model(write_masked(tmp_path / "bert", {"river": 40.0, "stone": 30.0, "tree": 20.0}), CPU, most=3)
    passage = Passage.of("a film, the " + "plot " * 200)
    answers = service([0] * 3, [(passage, 0), (passage, 2), (passage, 150)])
    assert answers == [["river", "stone", "tree"]] * 3


@pytest.mark.parametrize("load_one", [sentence_encoder, language_model, masked_model])
def test_what_is_no_model_is_refused_with_its_name(
    load_one: Callable[..., Any], resources: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no Hugging Face folder"):
        load_one(tmp_path, CPU)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="damaged"):
        load_one(damaged, CPU)


def test_a_model_for_another_purpose_is_refused(resources: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model for this purpose"):
        masked_model(resources / "encoder", CPU)
    folder = write_masked(tmp_path / "bert", {})
    write_tokenizer(folder, mask=False)
    with pytest.raises(ModelError, match="mask token"):
        masked_model(folder, CPU)


def test_results_are_not_reused_once_a_word_list_was_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert TextEvasion().surroundings() == {}
    write_wordnet(tmp_path / "wordnet", [("splendid", "dreadful")])
    monkeypatch.setattr(places, "_wordnet_places", lambda: iter((tmp_path / "wordnet",)))
    size = (tmp_path / "wordnet" / "index.noun").stat().st_size
    assert TextEvasion().surroundings() == TextAttribution().surroundings() == {"wordnet": size}
    assert TextAugmentationVariant(train="train.csv").surroundings() == {"wordnet": size}
