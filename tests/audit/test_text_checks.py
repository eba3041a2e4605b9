"""Damaged texts, behavioural tests and slices, on a model whose every answer can be worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.attacks.text.behaviour.edits import INVARIANT, variants
from auditorch.attacks.text.behaviour.templates import SENTIMENT
from auditorch.attacks.text.noise import NOISES, SEVERITIES, corrupted
from auditorch.attacks.text.passage import Passage
from auditorch.audit.checks.base import Check
from auditorch.audit.checks.behaviour import Behaviour, Trial, counted, failures
from auditorch.audit.checks.slices import Slices
from auditorch.audit.checks.text_corruption import TextCorruption
from auditorch.audit.checks.text_figures import differences
from auditorch.audit.errors import SpecError
from auditorch.audit.samples import Samples
from auditorch.audit.target import Target
from auditorch.reports.record import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load
from torch import Tensor, nn

from .fakes import FakeContext

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def encode(raw: np.ndarray) -> Tensor:
    """One column: whether the text has the very word ``good``."""
    return torch.tensor([[1.0 if "good" in str(text).split() else -1.0] for text in raw])


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-x, x], 1)


def target() -> Target:
    return Target(Sign(), encode, ("no", "yes"), "text", (0.0, 1.0), torch.device("cpu"), "0" * 64)


def samples(texts: list[str], labels: list[int], **columns: np.ndarray) -> Samples:
    inputs = np.array(texts, dtype=object)
    ids = np.arange(len(texts), dtype=np.int64)
    return Samples(inputs, np.array(labels), ids, [str(i) for i in ids], ("no", "yes"), "toy", "0" * 64, columns)


def values(result: Result) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in result.metrics}


def lies(check: Check, data: Samples, result: Result, root: Path, change: Mapping[str, Tensor]) -> set[str]:
    """What fails when the evidence says something else."""
    tensors = load((root / result.evidence[0].path).read_bytes())
    lying = FakeContext(root / "lie")
    evidence = lying.evidence("lie", {**tensors, **change})
    claims = check.verify(target(), data, result.model_copy(update={"evidence": (evidence,)}), lying)
    return {claim.what for claim in claims if not claim.ok}


def test_damage_costs_what_the_model_reads(tmp_path: Path) -> None:
    data = samples(["good"] * 30 + ["it is so"] * 10, [1] * 30 + [0] * 10)
    check = TextCorruption(corruptions=("case", "punctuation", "typos"))
    result = check.run(target(), data, FakeContext(tmp_path))
    found = values(result)
    assert found["clean_accuracy"] == 1
    assert found["accuracy_punctuation"] == 1
    # Upper case is always another word, random case nearly always, a slip always; short texts without the word stay.
    assert found["accuracy_typos"] == pytest.approx(10 / 40)
    assert found["accuracy_case"] == pytest.approx((40 + 10 + 12) / 120, abs=0.03)
    assert found["worst_corruption_accuracy"] == found["accuracy_typos"]
    claims = list(check.verify(target(), data, result, FakeContext(tmp_path)))
    assert all(claim.ok for claim in claims), claims
    wrong = lies(check, data, result, tmp_path, {"predictions": torch.ones(10, 40, dtype=torch.uint8)})
    assert {"the model predicts as recorded", "accuracy_typos follows from the recorded predictions"} <= wrong


@given(TEXT, st.sampled_from(sorted(NOISES)), st.sampled_from(SEVERITIES), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_noise_is_text_and_the_same_for_the_same_key(text: str, name: str, severity: int, key: int) -> None:
    damaged = corrupted(text, name, severity, str(key))
    damaged.encode("utf-8")
    assert damaged == corrupted(text, name, severity, str(key))
    if name == "truncation":
        assert text.startswith(damaged.rstrip()) or len(Passage.of(text)) <= 1
    if name == "spacing":
        assert damaged.replace(" ", "") == text.replace(" ", "")


def test_noise_grows_with_severity() -> None:
    text = " ".join(["wonderful"] * 40)
    for name in ("typos", "ocr"):
        edits = [sum(w != "wonderful" for w in corrupted(text, name, s, "0").split()) for s in SEVERITIES]
        assert edits == pytest.approx([4, 10, 20], abs=1)
    words = [len(corrupted(text, "truncation", s, "0").split()) for s in SEVERITIES]
    assert words == [30, 20, 10]


def test_invariance_edits_mean_the_same() -> None:
    rng = random.Random(0)
    assert variants("contractions", "It is not bad, don't worry", rng) == ["It's not bad, do not worry"]
    for other in variants("names", "Anna met Peter in Paris.", rng):
        words = other.rstrip(".").split()
        assert words[1] == "met"
        assert words[3] == "in"
        assert not {"Anna", "Peter", "Paris"} & set(words)
    for other in variants("numbers", "In 1999 we saw 12 of v2.10", rng):
        assert other.endswith("of v2.10")
        assert len(other) == len("In 1999 we saw 12 of v2.10")
    assert variants("names", "nobody here", rng) == []
    assert set(variants("punctuation", "So good!", rng)) == {"So good", "So good."}


@given(TEXT, st.sampled_from(sorted(INVARIANT)))
@settings(max_examples=100, deadline=None)
def test_invariance_edits_survive_any_text(text: str, name: str) -> None:
    for other in variants(name, text, random.Random(0)):
        assert other != text
        other.encode("utf-8")


def test_behaviour_counts_cases_not_trials(tmp_path: Path) -> None:
    data = samples(["Anna is good", "good , it is 12", "nothing", "good"], [1, 1, 0, 1])
    check = Behaviour(tests=("names", "case", "numbers"))
    result = check.run(target(), data, FakeContext(tmp_path))
    found = {metric.name: (metric.value, metric.n) for metric in result.metrics}
    assert found["invariance_names_failure_rate"] == (0.0, 1)
    assert found["invariance_numbers_failure_rate"] == (0.0, 1)
    assert found["invariance_case_failure_rate"] == (0.75, 4), "GOOD is another word to this model"
    assert found["failure_rate"] == (0.5, 6)
    claims = list(check.verify(target(), data, result, FakeContext(tmp_path)))
    assert all(claim.ok for claim in claims), claims
    tensors = load((tmp_path / result.evidence[0].path).read_bytes())
    wrong = lies(check, data, result, tmp_path, {"logits": -tensors["logits"]})
    assert {"the model predicts as recorded", "invariance_case_failure_rate follows from the recorded scores"} <= wrong


def test_templates_and_directions_are_judged_by_their_class(tmp_path: Path) -> None:
    data = samples(["good", "nothing"], [1, 0])
    result = Behaviour(tests=(), positive="yes", negative="no").run(target(), data, FakeContext(tmp_path))
    found = {metric.name: (metric.value, metric.n) for metric in result.metrics}
    sentences = [(t, s) for t in SENTIMENT for s in t.sentences()]
    for test in {t.test for t in SENTIMENT}:
        own = [t.label == "positive" for t, _ in sentences if t.test == test]
        # None of the templates has the word `good`: the model says no to all.
        assert found[f"template_{test}_failure_rate"] == (pytest.approx(np.mean(own)), len(own))
    assert found["direction_negative_failure_rate"] == (0.0, 2)
    with pytest.raises(SpecError, match="unknown class"):
        Behaviour(positive="yess", negative="no").run(target(), data, FakeContext(tmp_path))
    with pytest.raises(ValidationError, match="both positive and negative"):
        Behaviour(positive="yes")
    with pytest.raises(ValidationError, match="Did you mean 'names'"):
        Behaviour(tests=("name",))


def test_a_direction_test_fails_when_the_probability_moves_the_wrong_way() -> None:
    trials = [Trial("direction_positive", 0, 0, "x", "up", 1), Trial("direction_positive", 1, 1, "x", "up", 1)]
    base, after = torch.tensor([[0.0, 2.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.8], [0.0, 0.0]])
    assert failures(trials, base, after) == [False, True]
    assert counted(trials, [False, True]) == {"direction_positive": (1, 2)}


def test_slices_find_the_column_where_the_model_fails(tmp_path: Path) -> None:
    source = np.array(["web"] * 60 + ["fax"] * 40, dtype=object)
    texts = ["good"] * 60 + ["very g00d indeed, really"] * 40
    data = samples(texts, [1] * 100, source=source, score=np.linspace(0, 1, 100))
    check = Slices(columns=("source", "score"))
    result = check.run(target(), data, FakeContext(tmp_path))
    found = {metric.name: metric for metric in result.metrics}
    assert found["worst_slice_accuracy"].value == 0
    assert found["slice_gap"].value is not None
    assert found["slice_gap"].value > 0.8
    assert found["slice_gap"].ci_low is not None
    assert 0 < found["slice_gap"].ci_low < found["slice_gap"].value
    titles = {finding.title for finding in result.findings}
    assert "Accuracy is lower where source: fax" in titles
    assert not any("web" in title for title in titles)
    table = next(figure for figure in result.figures if figure.id == "table")
    rows = {row[0]: row[1:3] for row in table.rows}  # type: ignore[union-attr]
    assert rows["source: web"] == (60, 60)
    assert rows["source: fax"] == (40, 0)
    assert rows["words: 1 to 1"] == (60, 60)
    assert sum(int(n or 0) for name, (n, _) in rows.items() if str(name).startswith("score")) == 100  # type: ignore[arg-type]
    claims = list(check.verify(target(), data, result, FakeContext(tmp_path)))
    assert all(claim.ok for claim in claims), claims
    turned = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    assert "the model predicts as recorded" in lies(check, data, result, tmp_path, {"logits": turned})
    with pytest.raises(SpecError, match="Did you mean 'source'"):
        Slices(columns=("sourc",)).run(target(), data, FakeContext(tmp_path))


def test_slices_of_pure_chance_raise_no_alarm(tmp_path: Path) -> None:
    alarms = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        texts = ["good" if hit else "bad" for hit in rng.random(200) < 0.8]
        data = samples(texts, [1] * 200, group=rng.integers(0, 10, 200).astype(str).astype(object))
        result = Slices(columns=("group",), length=False).run(target(), data, FakeContext(tmp_path))
        alarms += bool(result.findings)
    assert alarms <= 4, "a family of intervals at 95 % fails one time in twenty"


def test_what_an_edit_changed_is_marked_on_both_texts() -> None:
    before, after = "It's a fine film, no less.", "It's a fnie film, no less!"
    marks = differences(before, after)
    assert [before[mark.start : mark.end] for mark in marks[0]] == ["fine", "."]
    assert [after[mark.start : mark.end] for mark in marks[1]] == ["fnie", "!"]
    added = differences("Good film", "Good film. I liked it")
    assert added[0] == ()
    assert [(mark.start, mark.end) for mark in added[1]] == [(9, 21)]
    assert differences("a " * 9000, "b " * 9000) == ((), ())
