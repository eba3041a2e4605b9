"""Relevance of words on a linear model, where every method must give the same known numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.attacks.text.passage import Passage
from auditorch.audit.checks.text_attribution import METHODS, TextAttribution
from auditorch.audit.checks.text_evidence import pack_edits, unpack_edits
from auditorch.audit.checks.text_moves import Attack, rank_correlation, top_overlap
from auditorch.audit.loading.model import load as load_target
from auditorch.audit.samples import Samples
from auditorch.audit.spec import parse_spec
from auditorch.audit.target import Target
from auditorch.reports.record import Excerpts
from safetensors.torch import load
from scipy.stats import spearmanr

from ..attacks.text_world import tiny_bert
from .fakes import FakeContext
from .test_text_trigger import FILLER, VOCABULARY, world
from .text_models import CSV, hide_word_lists


@pytest.fixture(autouse=True)
def _no_word_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_word_lists(monkeypatch)


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
    assert all(finding.title.endswith("points to other words after an attack") for finding in result.findings)
    claims = list(check.verify(target, samples, result, FakeContext(tmp_path)))
    assert all(claim.ok for claim in claims), [claim for claim in claims if not claim.ok]
    lying = FakeContext(tmp_path / "lie")
    evidence = lying.evidence("lie", {**tensors, "occlusion_words": -tensors["occlusion_words"]})
    claims = check.verify(target, samples, result.model_copy(update={"evidence": (evidence,)}), lying)
    wrong = {claim.what for claim in claims if not claim.ok}
    assert wrong >= {
        "the curves of occlusion follow from its relevances",
        "occlusion finds the recorded relevances again",
        "occlusion_top_overlap_edited follows from the evidence",
    }
    assert not any("lime" in what for what in wrong)


def long_world() -> tuple[Target, Samples]:
    """Texts of fifteen words of which one decides and the rest lean the other way, so that one edit breaks them."""
    target, samples = world(0.0)
    weights = target.module.embedding.weight[:, 0].detach()  # type: ignore[union-attr, index]
    lean = sorted(FILLER[:60], key=lambda word: float(weights[VOCABULARY[word]]))
    rng = np.random.default_rng(1)
    texts = []
    for i in range(80):
        against, agreeing = (lean[:20], lean[-20:]) if i % 4 < 2 else (lean[-20:], lean[:20])
        rest = [*rng.choice(against, 10, replace=False), *rng.choice(agreeing, 4, replace=False)]
        texts.append(" ".join([*rest, "good" if i % 4 < 2 else "bad"]))
    return target, replace(samples, inputs=np.array(texts, dtype=object))


def test_explanations_move_under_attack_by_as_much_as_words_were_edited(tmp_path: Path) -> None:
    target, samples = long_world()
    check = TextAttribution(samples=8)
    context = FakeContext(tmp_path)
    result = check.run(target, samples, context)
    tensors = load((tmp_path / result.evidence[0].path).read_bytes())
    edits = unpack_edits(tensors, 8)
    assert all(edits), "every text falls"
    weights = target.module.embedding.weight[:, 0].detach()  # type: ignore[union-attr, index]
    expected, overlaps, ranks = [], [], []
    for text, own in zip(samples.inputs[np.arange(8) * 10], edits, strict=True):
        sign = 2 if "good" in text else -2
        before = np.array([sign * float(weights[VOCABULARY[word]]) for word in text.split()])
        after = np.array([0.0 if slot in own else value for slot, value in enumerate(before)])
        expected += after.tolist()
        first, second = (set(np.argsort(-values)[:3].tolist()) for values in (before, after))
        overlaps.append(len(first & second) / 3)
        ranks.append(spearmanr(before, after)[0])
    found = {metric.name: metric for metric in result.metrics}
    for method in METHODS:
        assert tensors[f"{method}_attacked"].tolist() == pytest.approx(expected, abs=2e-3), method
    for method in ("occlusion", "integrated_gradients"):
        assert found[f"{method}_top_overlap_attacked"].value == pytest.approx(np.mean(overlaps))
        assert found[f"{method}_rank_correlation_attacked"].value == pytest.approx(np.mean(ranks), abs=0.02)
        assert found[f"{method}_top_overlap_attacked"].n == 8
    overlap = found["occlusion_top_overlap_attacked"]
    assert overlap.ci_low is not None
    assert overlap.ci_low <= np.mean(overlaps) <= overlap.ci_high  # type: ignore[operator]
    pairs = next(figure for figure in result.figures if figure.id == "attacked_texts")
    before, after = pairs.items[0].texts  # type: ignore[union-attr]
    assert before.text == samples.inputs[np.arange(1)][0]
    assert after.text != before.text
    assert "model: yes" in before.label
    assert "model: no" in after.label
    claims = list(check.verify(target, samples, result, context))
    assert all(claim.ok for claim in claims), [claim for claim in claims if not claim.ok]

    def failing(change: dict[str, torch.Tensor]) -> set[str]:
        lying = FakeContext(tmp_path / "lie")
        lie = result.model_copy(update={"evidence": (lying.evidence("lie", {**tensors, **change}),)})
        return {claim.what for claim in check.verify(target, samples, lie, lying) if not claim.ok}

    harmless = [{0: "wbb"}, *edits[1:]]
    assert "the model errs on the adversarial texts" in failing(pack_edits(harmless, range(8)))
    assert np.mean(overlaps) == pytest.approx(2 / 3), "the word that decided is gone"
    flattered = {"lime_attacked": tensors["lime_words"].clone()}
    assert failing(flattered) >= {
        "lime finds the recorded relevances again",
        "lime_top_overlap_attacked follows from the evidence",
    }


def test_nothing_is_claimed_of_an_attack_that_finds_nothing(tmp_path: Path) -> None:
    target, samples = world(0.0)
    with torch.no_grad():
        target.module.head.weight.zero_()  # type: ignore[union-attr]
    result = TextAttribution(methods=("occlusion",), samples=4).run(target, samples, FakeContext(tmp_path))
    overlap = result.metric("occlusion_top_overlap_attacked")
    assert overlap is not None
    assert (overlap.value, overlap.n) == (None, 0)
    assert any("broke 0 of" in warning for warning in result.warnings)
    quiet = TextAttribution(methods=("occlusion",), samples=4, attack=None).run(target, samples, FakeContext(tmp_path))
    assert not quiet.warnings
    assert "recipe" not in quiet.parameters
    assert "Whether an attack moves the explanations." in quiet.not_covered


def test_lime_ranks_words_as_a_bag_of_words_weighs_them(tmp_path: Path) -> None:
    target, samples = long_world()
    check = TextAttribution(methods=("lime",), samples=8, attack=None)
    words = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        context = FakeContext(tmp_path / name, seed=seed)
        tensors = context.read_evidence(check.run(target, samples, context).evidence[0])
        words.append(tensors["lime_words"])
    assert torch.equal(words[0], words[1]), "the seed decides"
    assert not torch.equal(words[0], words[2])
    weights = target.module.embedding.weight[:, 0].detach()  # type: ignore[union-attr, index]
    for text, values in zip(samples.inputs[np.arange(8) * 10], words[0].split(15), strict=True):
        sign = 1 if "good" in text else -1
        true = [sign * float(weights[VOCABULARY[word]]) for word in text.split()]
        assert spearmanr(true, values)[0] > 0.99  # type: ignore[operator]
        assert int(values.argmax()) == 14, "the word that decides"


def test_saliency_is_the_size_of_the_gradient(tmp_path: Path) -> None:
    """On a linear model it is the same for every word, whatever the word: 1 from each row of the head."""
    target, samples = world(0.0)
    check, context = TextAttribution(methods=("saliency",), samples=4, attack=None), FakeContext(tmp_path)
    result = check.run(target, samples, context)
    assert context.read_evidence(result.evidence[0])["saliency_words"].tolist() == pytest.approx([2.0] * 24)
    assert check.required() == {"gradients"}
    assert all(claim.ok for claim in check.verify(target, samples, result, context))


def test_rank_correlation_of_constants_is_undefined() -> None:
    ramp = np.arange(10.0)
    assert rank_correlation(ramp, ramp**3) == pytest.approx(1)
    assert rank_correlation(ramp, -ramp) == pytest.approx(-1)
    assert np.isnan(rank_correlation(ramp, np.zeros(10)))
    assert np.isnan(rank_correlation(ramp[:1], ramp[:1]))


@pytest.mark.parametrize("attack", ["hotflip", "deepwordbug"])
def test_a_transformer_is_explained_before_and_after_an_attack(tmp_path: Path, attack: Attack) -> None:
    target, samples = load_world(tiny_bert(tmp_path / "bert"))
    check = TextAttribution(samples=4, steps=8, attack=attack, methods=("integrated_gradients", "saliency", "lime"))
    context = FakeContext(tmp_path)
    result = check.run(target, samples, context)
    assert result.parameters["recipe"]["edits"] == {"hotflip": "HotFlip", "deepwordbug": "Characters"}[attack]
    overlap = result.metric("lime_top_overlap_attacked")
    assert overlap is not None
    assert overlap.value is not None
    claims = list(check.verify(target, samples, result, context))
    assert all(claim.ok for claim in claims), [claim for claim in claims if not claim.ok]


def load_world(folder: Path) -> tuple[Target, Samples]:
    (folder.parent / "test.csv").write_text(CSV)
    model = {"source": folder.name, "modality": "text"}
    data = {"source": "test.csv", "classes": ["negative", "positive"]}
    raw = {"version": 1, "model": model, "data": data, "checks": ["performance"]}
    return load_target(parse_spec(raw, folder.parent), torch.device("cpu"))


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
    assert TextAttribution(methods=("lime",), attack="hotflip").required() == {"gradients"}
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
