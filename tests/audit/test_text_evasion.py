"""The check on texts from spec to report: known answers, claims that verify, lies that it catches, hostile texts."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.attacks.text.passage import Passage
from auditorch.audit.checks.text_evasion import TextEvasion
from auditorch.audit.checks.text_evidence import pack_edits, unpack_edits
from auditorch.audit.errors import SpecError, UnsupportedError
from auditorch.audit.loading.model import load
from auditorch.audit.runner import run_audit
from auditorch.audit.samples import Samples
from auditorch.audit.spec import parse_spec
from auditorch.audit.target import Target
from auditorch.reports.excerpts import marked_pieces
from auditorch.reports.record import Excerpts, Mark, MarkedText, Result
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from ..attacks.text_world import tiny_bert
from .fakes import FakeContext
from .test_text_trigger import PLANTED
from .test_text_trigger import world as planted_world
from .text_models import CSV, FACTORY, hide_word_lists

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _no_word_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_word_lists(monkeypatch)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    tiny_bert(folder / "bert")
    (folder / "model.py").write_text(FACTORY)
    (folder / "test.csv").write_text(CSV)
    return folder


def world(folder: Path, model: str = "factory", data: str = "test.csv") -> tuple[Target, Samples]:
    origin = {"factory": "model.py:build"} if model == "factory" else {"source": "bert"}
    raw = {
        "version": 1,
        "model": {**origin, "modality": "text"},
        "data": {"source": data, "classes": ["negative", "positive"]},
        "checks": ["performance"],
    }
    return load(parse_spec(raw, folder), torch.device("cpu"))


def metrics(result: Result) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in result.metrics}


def test_counts_are_those_of_a_model_that_can_be_read(project: Path, tmp_path: Path) -> None:
    target, samples = world(project)
    result = TextEvasion(attack="deepwordbug").run(target, samples, FakeContext(tmp_path))
    found = metrics(result)
    # Any misspelling makes a word unknown (score 0), and without words the class is negative: positive texts all fall,
    # negative ones never do.
    assert found["clean_accuracy"] == 1
    assert found["attack_success_rate"] == pytest.approx(4 / 8)
    assert found["robust_accuracy"] == pytest.approx(4 / 8)
    assert found["words_changed"] == pytest.approx((1 + 2 + 1 + 1) / 4)
    assert found["similarity"] is not None
    assert 0.6 < found["similarity"] < 1
    table = next(figure for figure in result.figures if figure.id == "groups")
    rows = {row[0]: row for row in table.rows}  # type: ignore[union-attr]
    assert rows["negative"][2:4] == (4, 0)
    assert rows["positive"][2:4] == (4, 4)
    assert rows["all"][2:4] == (8, 4)


def test_examples_mark_what_was_edited(project: Path, tmp_path: Path) -> None:
    target, samples = world(project)
    result = TextEvasion(attack="typos", gallery=3).run(target, samples, FakeContext(tmp_path))
    shown = next(figure for figure in result.figures if isinstance(figure, Excerpts))
    assert len(shown.items) == 3
    for item in shown.items:
        before, after = item.texts
        assert [before.text[m.start : m.end] for m in before.marks] != [
            after.text[m.start : m.end] for m in after.marks
        ]
        assert "positive" in before.label
        assert "model: negative" in after.label


def test_verify_holds_for_the_truth_and_not_for_lies(project: Path, tmp_path: Path) -> None:
    target, samples = world(project)
    check, context = TextEvasion(attack="characters", max_changed=0.5), FakeContext(tmp_path)
    result = check.run(target, samples, context)
    claims = list(check.verify(target, samples, result, context))
    assert all(claim.ok for claim in claims), [claim for claim in claims if not claim.ok]
    assert len(claims) >= 4 + len(result.metrics)

    def failing(change: Mapping[str, torch.Tensor]) -> set[str]:
        tensors = load_tensors((tmp_path / result.evidence[0].path).read_bytes())
        lying = FakeContext(tmp_path / "lie")
        evidence = lying.evidence("adversarial", {**tensors, **change})
        return {
            c.what
            for c in check.verify(target, samples, result.model_copy(update={"evidence": (evidence,)}), lying)
            if not c.ok
        }

    tensors = load_tensors((tmp_path / result.evidence[0].path).read_bytes())
    harmless = [{4: "good"} if i == 0 else own for i, own in enumerate(unpack_edits(tensors, len(samples)))]
    harmless[0] = {1: "flim"}
    rows = [i for i, own in enumerate(harmless) if own]
    assert "the model errs on the adversarial texts" in failing(pack_edits(harmless, rows))
    everything = [dict.fromkeys(range(4), "xx") if i == 0 else own for i, own in enumerate(harmless)]
    assert "adversarial texts keep every constraint" in failing(pack_edits(everything, rows))
    assert "the model predicts as recorded" in failing({"clean_logits": -tensors["clean_logits"]})
    assert "attack_success_rate follows from the adversarial texts" in failing(pack_edits(harmless, rows[1:]))
    other = samples.select(np.arange(len(samples))[::-1].copy())
    assert not next(iter(check.verify(target, other, result, context))).ok


def test_edits_survive_as_tensors() -> None:
    edits = [{0: "", 3: "naïve 👍"}, {}, {2: "\u200bx\x00"}]
    assert unpack_edits(load_tensors(save(pack_edits(edits, [0, 2]))), 3) == edits
    assert unpack_edits(pack_edits([{}], []), 1) == [{}]


@pytest.mark.parametrize("attack", ["hotflip", "gbda"])
def test_white_box_attacks_on_a_transformer(project: Path, tmp_path: Path, attack: str) -> None:
    target, samples = world(project, "bert")
    check, context = TextEvasion(attack=attack), FakeContext(tmp_path)
    result = check.run(target, samples, context)
    found = metrics(result)
    assert found["attack_success_rate"] is not None
    assert found["attack_success_rate"] >= 0.5, "without word lists any word may take the place of a decisive one"
    assert [warning.split(":")[0] for warning in result.warnings if "guarded" in warning] == [
        "Labels are guarded without antonyms",
        "Labels are guarded without polarity",
    ]
    assert all(claim.ok for claim in check.verify(target, samples, result, context))
    again = TextEvasion(attack=attack, batch_size=1).run(target, samples, FakeContext(tmp_path / "again"))
    assert metrics(again) == metrics(result)


@pytest.mark.parametrize("attack", ["hotflip", "gbda"])
def test_guarded_gradient_attacks_keep_praise_praise(tmp_path: Path, attack: str) -> None:
    """A word that the lexicon does not know outweighs all others: it may come in the place of neutral words alone."""
    target, samples = planted_world(9.0)
    (tmp_path / "lexicon.txt").write_text("good\t2\nbad\t-2\n")

    def turned(check: TextEvasion, root: Path) -> int:
        """How many words of praise and blame come or go; every claim of the result holds."""
        context = FakeContext(root)
        result = check.run(target, samples, context)
        assert all(claim.ok for claim in check.verify(target, samples, result, context))
        edits = unpack_edits(context.read_evidence(result.evidence[0]), 8)
        words = [Passage.of(text).words for text in samples.inputs[np.arange(8) * 10]]
        pairs = [(words[row][slot], new) for row, own in enumerate(edits) for slot, new in own.items()]
        assert any(new == PLANTED for _, new in pairs)
        return sum(old in ("good", "bad") or new in ("good", "bad") for old, new in pairs)

    lexicon = str(tmp_path / "lexicon.txt")
    assert turned(TextEvasion(attack=attack, limit=8, lexicon=lexicon), tmp_path / "kept") == 0
    assert turned(TextEvasion(attack=attack, limit=8, label_preserving=False), tmp_path / "free") > 0


def test_a_transformer_gives_the_same_at_any_batch_size(project: Path, tmp_path: Path) -> None:
    target, samples = world(project, "bert")
    edits = []
    for size in (1, 3, 64):
        check, context = TextEvasion(attack="characters", batch_size=size), FakeContext(tmp_path / str(size))
        result = check.run(target, samples, context)
        edits.append(unpack_edits(context.read_evidence(result.evidence[0]), len(samples)))
    assert edits[0] == edits[1] == edits[2]


def test_half_precision_is_for_the_search_alone(project: Path, tmp_path: Path) -> None:
    target, samples = world(project, "bert")
    half: list[bool] = []
    target.module.register_forward_pre_hook(lambda *_: half.append(torch.is_autocast_enabled("cpu")))
    context = FakeContext(tmp_path)
    check = TextEvasion(attack="characters", precision="bfloat16")
    result = check.run(target, samples, context)
    assert metrics(result)["attack_success_rate"] > 0.3  # type: ignore[operator]
    assert half.count(True) > 3
    assert not half[0], "clean predictions"
    assert not half[-1], "the last look at the successes"
    half.clear()
    assert all(claim.ok for claim in check.verify(target, samples, result, context))
    assert not any(half)


def test_a_target_class_is_reached_from_the_other(project: Path, tmp_path: Path) -> None:
    target, samples = world(project)
    result = TextEvasion(attack="characters", target="negative").run(target, samples, FakeContext(tmp_path))
    rate = result.metric("attack_success_rate")
    assert rate is not None
    assert (rate.value, rate.n) == (1.0, 4)
    with pytest.raises(SpecError, match="Did you mean 'negative'"):
        TextEvasion(target="negativ").run(target, samples, FakeContext(tmp_path))


def test_black_box_targets_are_attacked_but_not_with_gradients(project: Path, tmp_path: Path) -> None:
    target, samples = world(project)
    black = replace(target, access=frozenset({"scores", "labels"}))
    assert TextEvasion(attack="hotflip").required() == {"gradients"}
    assert TextEvasion(attack="characters").required() == {"labels"}
    with pytest.raises(UnsupportedError, match="gradients"):
        TextEvasion(attack="characters", search="gradient").run(black, samples, FakeContext(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "deepwordbugs"}, "Did you mean 'deepwordbug'"),
        ({"search": "beem"}, "Did you mean 'beam'"),
        ({"similarity": 0.8}, "needs encoder"),
        ({"fluency": 1.0}, "needs language_model"),
        ({"attack": "masked"}, "needs masked_model"),
        ({"queries": 1}, "queries"),
        ({"max_changed": 0}, "max_changed"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextEvasion(**options)


HOSTILE = (
    "",
    "<script>alert('good')</script>",
    "good \u202eolleh\u202c שלום العالم",
    "😀👨‍👩‍👧 good 🎉",
    "good\x00\x07\x1b[31m film",
    "我喜欢这部电影，good",
    "good " * 3_000,
)


def test_hostile_texts_pass_through_attack_and_report(project: Path, tmp_path: Path) -> None:
    with (project / "hostile.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "positive") for text in HOSTILE)])
    raw = {
        "version": 1,
        "model": {"factory": "model.py:build", "modality": "text"},
        "data": {"source": "hostile.csv", "classes": ["negative", "positive"]},
        "checks": [{"text_evasion": {"attack": "invisible", "queries": 20}}],
    }
    record = run_audit(parse_spec(raw, project), tmp_path / "out")
    result = record.variants[0].results[0]
    assert result.status == "ok", result.error
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "[U+200" in page, "what has no width is shown as its code point"
    assert '<mark class="edit">' in page
    assert json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))["variants"]


def test_pieces_of_a_marked_text_are_the_text() -> None:
    text = "one two three"
    pieces = marked_pieces(MarkedText(label="", text=text, marks=(Mark(start=4, end=7, weight=-0.5),)))
    assert [(piece.text, piece.shade) for piece in pieces] == [("one ", None), ("two", -50), (" three", None)]
    long = "x" * 2000 + "MARK" + "y" * 2000
    pieces = marked_pieces(MarkedText(label="", text=long, marks=(Mark(start=2000, end=2004),)))
    assert [piece.text for piece in pieces if piece.shade is not None] == ["MARK"]
    assert sum(len(piece.text) for piece in pieces) < 400
    assert Passage.of(text).text == text
