"""Relevance of words on a linear model, where every method must give the same known numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.attacks.text.passage import Passage
from auditorch.audit.checks.text_attribution import METHODS, TextAttribution, top_overlap
from auditorch.reports.record import Excerpts
from safetensors.torch import load

from .fakes import FakeContext
from .test_text_trigger import VOCABULARY, world


def test_every_method_finds_the_weights_of_a_linear_model(tmp_path: Path) -> None:
    target, samples = world(0.0)
    check = TextAttribution(samples=6)
    result = check.run(target, samples, FakeContext(tmp_path))
    tensors = load((tmp_path / result.evidence[0].path).read_bytes())
    weights = target.module.embedding.weight[:, 0].detach()  # type: ignore[union-attr, index]
    chosen = np.arange(6) * len(samples) // 6
    for method in METHODS:
        expected = []
        for text in samples.inputs[chosen]:
            sign = 1 if "good" in text else -1
            expected += [sign * 2 * float(weights[VOCABULARY[word]]) for word in Passage.of(text).words]
        assert tensors[f"{method}_words"].tolist() == pytest.approx(expected, abs=2e-3), method
    found = {metric.name: metric for metric in result.metrics}
    for method in METHODS:
        gain = found[f"{method}_deletion_gain"]
        assert gain.ci_low is not None
        assert gain.ci_low > 0
        assert found[f"{method}_insertion_gain"].value == pytest.approx(
            found["occlusion_insertion_gain"].value, abs=1e-2
        )
    assert not result.findings
    claims = list(check.verify(target, samples, result, FakeContext(tmp_path)))
    assert all(claim.ok for claim in claims), [claim for claim in claims if not claim.ok]
    lying = FakeContext(tmp_path / "lie")
    evidence = lying.evidence("lie", {**tensors, "occlusion_words": -tensors["occlusion_words"]})
    claims = check.verify(target, samples, result.model_copy(update={"evidence": (evidence,)}), lying)
    assert {claim.what for claim in claims if not claim.ok} == {"the curves of occlusion follow from its relevances"}


def test_words_are_coloured_by_their_relevance(tmp_path: Path) -> None:
    target, samples = world(0.0)
    result = TextAttribution(methods=("occlusion",), samples=4, gallery=2).run(target, samples, FakeContext(tmp_path))
    shown = next(figure for figure in result.figures if isinstance(figure, Excerpts))
    assert shown.style == "relevance"
    for item in shown.items:
        (text,) = item.texts
        strongest = max(text.marks, key=lambda mark: mark.weight)
        assert strongest.weight == 1
        assert text.text[strongest.start : strongest.end] in ("good", "bad")


def test_a_model_that_reads_nothing_gets_no_believable_explanation(tmp_path: Path) -> None:
    target, samples = world(0.0)
    with torch.no_grad():
        target.module.embedding.weight.zero_()  # type: ignore[union-attr, operator]
    result = TextAttribution(methods=("occlusion",), samples=6).run(target, samples, FakeContext(tmp_path))
    assert [finding.title for finding in result.findings] == ["Occlusion ranks words no better than chance"]


def test_black_boxes_are_explained_without_gradients() -> None:
    assert TextAttribution(methods=("occlusion", "kernel_shap")).required() == {"scores"}
    assert TextAttribution().required() == {"gradients"}


def test_hostile_texts_are_explained(tmp_path: Path) -> None:
    target, samples = world(0.0)
    texts = np.array(["", "<script>good</script>", "😀 שלום", "good " * 300], dtype=object)
    hostile = replace(samples.select(np.arange(4)), inputs=texts)
    check = TextAttribution(methods=("integrated_gradients", "occlusion"), samples=4)
    result = check.run(target, hostile, FakeContext(tmp_path))
    assert all(claim.ok for claim in check.verify(target, hostile, result, FakeContext(tmp_path)))


def test_overlap_of_rankings() -> None:
    ramp = np.arange(10.0)
    assert top_overlap(ramp, ramp) == 1
    assert top_overlap(ramp, -ramp) == 0
    assert top_overlap(ramp, np.r_[np.zeros(8), 0, 9.0]) == 0.5
