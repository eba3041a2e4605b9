"""Variants of text models: padding, parts of a transformer, private gradients, membership, run and verification."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.base import encoded
from auditorch.audit.checks.membership import Membership
from auditorch.audit.errors import UnsupportedError
from auditorch.audit.loading.model import load
from auditorch.audit.loading.tokens import TokenEncode
from auditorch.audit.runner import run_audit
from auditorch.audit.samples import Samples
from auditorch.audit.spec import load_spec, parse_spec
from auditorch.audit.target import Target
from auditorch.audit.variants import training
from auditorch.audit.variants.dp_sgd import DPSGDVariant
from auditorch.audit.variants.fine_tuning import FineTuningVariant
from auditorch.audit.variants.freelb import FreeLBVariant
from auditorch.audit.variants.student import StudentVariant
from auditorch.audit.variants.sweep import SweepVariant
from auditorch.audit.variants.text_augmentation import TextAugmentationVariant
from auditorch.audit.verify import verify
from auditorch.defenses.checkpoint import Checkpoint
from auditorch.defenses.scope import blocks
from auditorch.privacy.gradients.tape import Tape
from auditorch.reports.schema import read_record
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from ..attacks.text_world import WORDS, tiny_bert, word_logits
from .fakes import FakeContext

pytest.importorskip("transformers")
CPU = torch.device("cpu")

SPEC = """version: 1
model: {source: bert, modality: text}
data: {source: test.csv}
checks:
  - performance
  - membership: {train: train.csv}
  - text_evasion: {attack: typos, queries: 20, limit: 8, variants: [base, random_mask]}
  - text_certification: {draws: 60, limit: 8, variants: [random_mask]}
variants:
  - fine_tuning: {train: train.csv, epochs: 1, batch_size: 16, scope: 2, validation: 0.2}
  - distillation: {train: train.csv, epochs: 1, batch_size: 16, start: target}
  - regularization: {train: train.csv, epochs: 1, batch_size: 16, dropout: 0.1}
  - freelb: {train: train.csv, epochs: 1, batch_size: 16}
  - text_augmentation: {train: train.csv, epochs: 1, batch_size: 16, limit: 16, queries: 40}
  - random_mask: {train: train.csv, epochs: 1, batch_size: 16, masked: 0.3, copies: 32}
  - dp_sgd: {train: train.csv, epochs: 1, batch_size: 16, start: target, scope: head, noise_multiplier: 1.0}
seed: 0
"""


def write_texts(path: Path, n: int, seed: int) -> None:
    """Texts of two to nine words of the toy world, labelled by their scores."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS[5:], int(rng.integers(2, 10)))) for _ in range(n)]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        rows.writerows(zip(texts, word_logits(texts).argmax(1).tolist(), strict=True))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    tiny_bert(folder / "bert")
    write_texts(folder / "train.csv", 48, 0)
    write_texts(folder / "test.csv", 32, 1)
    (folder / "audit.yaml").write_text(SPEC)
    return folder


def read(project: Path, source: str) -> tuple[Target, Samples]:
    spec = {"version": 1, "model": {"source": "bert", "modality": "text"}, "data": {"source": source},
            "checks": ["performance"]}  # fmt: skip
    return load(parse_spec(spec, project), CPU)


@pytest.fixture
def target(project: Path) -> Target:
    return read(project, "test.csv")[0]


def test_texts_of_any_length_become_one_tensor(project: Path, target: Target) -> None:
    sides = [read(project, source)[1] for source in ("test.csv", "train.csv")]
    x, y = encoded(target, *sides, batch_size=3)
    raw = np.concatenate([side.inputs[np.arange(len(side))] for side in sides])
    assert x.shape[0] == len(y) == 80
    with torch.no_grad():
        alone = torch.cat([target.logits(raw[i : i + 1]) for i in range(80)])
        assert torch.allclose(target.module(x), alone, atol=1e-5), "padding must not matter"
    assert y.tolist() == [*sides[0].labels, *sides[1].labels]


def test_blocks_of_a_transformer_are_its_layers(target: Target) -> None:
    names = [type(block).__name__ for block in blocks(target.module)]
    assert names == ["BertEmbeddings", "BertLayer", "BertPooler", "Linear"]


def context(project: Path, root: Path) -> FakeContext:
    return FakeContext(root, variant="variant", seed=0, sources={"train": read(project, "train.csv")[1]})


def changed(before: Target, after: torch.nn.Module) -> set[str]:
    """Parameters that differ, by the part of the transformer that they belong to."""
    old, parts = before.module.state_dict(), ("embeddings", "layer.0", "pooler", "classifier")
    moved = [name for name, value in after.state_dict().items() if not torch.equal(value, old[name])]
    return {part for part in parts for name in moved if part in name.replace("bert.encoder.", "")}


@pytest.mark.parametrize(("scope", "parts"), [("head", {"classifier"}), (3, {"classifier", "pooler", "layer.0"})])
def test_only_the_part_in_scope_is_trained(
    scope: Any, parts: set[str], project: Path, target: Target, tmp_path: Path
) -> None:
    samples = read(project, "test.csv")[1]
    plain = FineTuningVariant(train="train", epochs=1, batch_size=16, scope=scope)
    private = DPSGDVariant(
        train="train", epochs=1, batch_size=16, scope=scope, start="target", noise_multiplier=1.0, delta=1e-3
    )
    for variant in (plain, private):
        built = variant.build(target, samples, context(project, tmp_path / variant.name))
        assert changed(target, built.module) == parts


def test_adapters_of_a_transformer_are_trained_privately_and_merged(
    project: Path, target: Target, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    options = {"train": "train", "epochs": 1, "batch_size": 16, "scope": "lora", "lora_rank": 2, "start": "target"}
    private = DPSGDVariant.model_validate({**options, "noise_multiplier": 1.0, "delta": 1e-3, "lr": 1.0})
    built = private.build(target, read(project, "test.csv")[1], context(project, tmp_path))
    name = "body.bert.encoder.layer.0.attention.self.query.weight"
    change = built.module.state_dict()[name] - target.module.state_dict()[name]
    assert list(built.module.state_dict()) == list(target.module.state_dict())
    assert float(change.norm()) > 1e-4
    assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) <= 2


def test_gradients_by_record_of_a_transformer_equal_a_loop(project: Path, target: Target) -> None:
    """Every parameter: word, position and type embeddings, attention, norms, pooler, head; with padding."""
    x, y = encoded(target, read(project, "test.csv")[1].select(np.arange(6)))
    module = copy.deepcopy(target.module)
    trained = list(module.parameters())
    expected = []
    for row in range(6):
        loss = cross_entropy(module(x[row : row + 1]), y[row : row + 1])
        expected.append(torch.autograd.grad(loss, trained))
    tape = Tape(module)
    with tape.recording(6):
        found = tape.gradients(cross_entropy(module(x), y, reduction="sum"))
    tape.remove()
    assert tape.slow == ()
    norms = torch.tensor([float(sum(g.square().sum() for g in one)) for one in expected]).sqrt()
    assert torch.allclose(found.norms(), norms, rtol=1e-4)
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.1, 0.3])
    sums = found.weighted_sums([weights] * len(trained))
    for place, total in enumerate(sums):
        own = sum(w * one[place] for w, one in zip(weights, expected, strict=True))
        assert torch.allclose(total, torch.as_tensor(own), atol=1e-5)


def memorised(project: Path, target: Target, tmp_path: Path) -> tuple[Target, Samples]:
    """The target trained far too long on a few texts with random labels, and these."""
    train = read(project, "train.csv")[1]
    labels = np.random.default_rng(3).integers(0, 2, len(train))
    noisy = Samples(train.inputs, labels, train.ids, train.names, train.classes, "noisy", "1" * 64)
    where = FakeContext(tmp_path, variant="variant", seed=0, sources={"train": noisy})
    variant = FineTuningVariant(train="train", epochs=40, batch_size=16, lr=1e-2)
    built = variant.build(target, train, where)
    return target.with_module(built.module, "2" * 64), noisy


def test_a_model_that_memorised_its_texts_gives_them_away(project: Path, target: Target, tmp_path: Path) -> None:
    spoiled, train = memorised(project, target, tmp_path)
    test = read(project, "test.csv")[1]
    labels = np.random.default_rng(4).integers(0, 2, len(test))
    fresh = Samples(test.inputs, labels, test.ids, test.names, test.classes, "fresh", "3" * 64)
    where = FakeContext(tmp_path, sources={"train": train})
    check = Membership(train="train")
    leaking, sound = check.run(spoiled, fresh, where), check.run(target, fresh, where)
    found = [{metric.name: metric.value or 0.0 for metric in result.metrics} for result in (leaking, sound)]
    assert found[0]["member_accuracy"] > 0.95
    assert found[0]["auc"] > 0.7
    assert abs(found[1]["auc"] - 0.5) < 0.15
    with pytest.raises(UnsupportedError, match="label_only changes inputs a little"):
        Membership(train="train", attack="label_only").run(target, fresh, where)
    with pytest.raises(UnsupportedError, match="flip and shifts"):
        Membership(train="train", attack="lira", flip=True).run(target, fresh, where)


def test_a_text_in_both_sets_is_noticed_whatever_it_is_padded_to(project: Path, target: Target, tmp_path: Path) -> None:
    train, test = read(project, "train.csv")[1], read(project, "test.csv")[1]
    texts = test.inputs[np.arange(len(test))]
    texts[7] = train.inputs[np.arange(4)][3]
    both = Samples(texts, test.labels, test.ids, test.names, test.classes, "both", "4" * 64)
    result = Membership(train="train").run(target, both, FakeContext(tmp_path, sources={"train": train}))
    assert any("1 of 32 held-out records" in finding.title for finding in result.findings)


def test_an_audit_of_text_variants_runs_resumes_and_verifies(project: Path) -> None:
    spec, out = load_spec(project / "audit.yaml"), project / "out"
    run_audit(spec, out)
    record = read_record(out / "audit.json")
    assert [variant.id for variant in record.variants] == [
        "base", "fine_tuning", "distillation", "regularization", "freelb", "text_augmentation", "random_mask", "dp_sgd"
    ]  # fmt: skip
    for variant in record.variants:
        assert {result.status for result in variant.results} == {"ok"}, variant
        for result in variant.results[:2]:
            accuracy = result.metric("accuracy") or result.metric("member_accuracy")
            assert accuracy is not None
            assert accuracy.value is not None
            assert accuracy.value > 0.8, (variant.id, accuracy)
    failed = [claim for claim in verify(out) if not claim.ok]
    assert not failed, failed
    weights = (out / "evidence" / "dp_sgd" / "model.safetensors").stat().st_mtime_ns
    run_audit(spec, out)
    again = read_record(out / "audit.json")
    assert (out / "evidence" / "dp_sgd" / "model.safetensors").stat().st_mtime_ns == weights, "nothing is trained again"
    assert [v.results[0].metrics for v in again.variants] == [v.results[0].metrics for v in record.variants]


def test_what_broke_the_target_is_learned_with_its_true_label(project: Path, target: Target, tmp_path: Path) -> None:
    where = context(project, tmp_path)
    variant = TextAugmentationVariant(train="train", epochs=15, batch_size=16, lr=5e-3, limit=40)
    held = variant.model_copy(update={"validation": 0.25})
    apart = held.lesson(target, where)
    assert apart.held is not None
    aside = read(project, "train.csv")[1].inputs[apart.held[0].rows.numpy()]
    assert len(aside) >= 10
    assert not set(aside) & set(held.attacked(target, apart, where).texts), "held-out texts stay out"
    lesson = variant.lesson(target, where)
    more = variant.attacked(target, lesson, where)
    n = len(lesson.y)
    assert 0 < more.added == len(more.y) - n <= more.tried <= 40
    assert torch.equal(more.y[:n], lesson.y)
    known = set(read(project, "train.csv")[1].inputs[np.arange(48)])
    assert set(more.texts[:n]) <= known
    assert not set(more.texts[n:]) & known
    assert (target.logits(more.texts[n:]).argmax(1) != more.y[n:]).all(), "only what the target gets wrong is added"
    built = variant.build(target, read(project, "test.csv")[1], where)
    after = target.with_module(built.module, "5" * 64).logits(more.texts).argmax(1)
    assert float((after[n:] == more.y[n:]).float().mean()) > 0.8
    broken = {metric.name: (metric.value, metric.n) for metric in built.metrics}["training_texts_broken"]
    assert broken == (more.added / more.tried, more.tried)
    with pytest.raises(ValidationError, match="unknown text attack"):
        TextAugmentationVariant(train="train", attack="masked")


def test_a_sweep_over_a_text_defense_is_judged_by_an_attack_on_texts(
    project: Path, target: Target, tmp_path: Path
) -> None:
    made = {"train": "train", "defense": {"fine_tuning": {"epochs": 1, "batch_size": 16}}, "sampler": "grid",
            "over": {"lr": [1e-5, 30.0]}, "validation": 0.3, "steps": 10}  # fmt: skip
    test = read(project, "test.csv")[1]
    built = SweepVariant.model_validate({**made, "attack": "typos"}).build(target, test, context(project, tmp_path))
    found = {metric.name: metric.value or 0.0 for metric in built.metrics}
    assert built.parameters["chosen"] == {"lr": 1e-5}, "the other setting ruins the model"
    assert found["validation_robust_accuracy"] < found["validation_accuracy"]
    assert "10 queries per text" in built.summary
    with pytest.raises(UnsupportedError, match="such as typos, not pgd"):
        SweepVariant.model_validate(made).build(target, test, context(project, tmp_path))


def test_a_training_on_texts_that_was_cut_off_ends_with_the_same_weights(
    project: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are padded to lengths of their own; the continued training must see the same ones."""
    variant = FineTuningVariant(train="train", epochs=3, batch_size=16)
    test = read(project, "test.csv")[1]
    whole = variant.build(target, test, context(project, tmp_path / "whole")).module.state_dict()
    monkeypatch.setattr(training, "Checkpoint", lambda path, key: Checkpoint(path, 0, key))
    where, steps = context(project, tmp_path / "cut"), list[float]()

    def cut_off(amount: float = 1.0) -> None:
        steps.append(amount)
        if len(steps) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(where.progress, "advance", cut_off)
    with pytest.raises(KeyboardInterrupt):
        variant.build(target, test, where)
    again = variant.build(target, test, where).module.state_dict()
    assert steps[5:7] == [64, 16], "four steps of 16 were saved and are not made again"
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


def test_a_student_of_a_transformer_has_half_of_its_layers(tmp_path: Path) -> None:
    """Six layers, of which three stay; the student learns the answers and is reloaded from what was kept."""
    tiny_bert(tmp_path / "bert", layers=6)
    write_texts(tmp_path / "train.csv", 48, 0)
    write_texts(tmp_path / "test.csv", 32, 1)
    target, samples = read(tmp_path, "test.csv")
    variant = StudentVariant(train="train", epochs=4, batch_size=16, lr=2e-3)
    begun = variant.wrap(copy.deepcopy(target.module)).state_dict()
    own = target.module.state_dict()
    for place, number in enumerate((0, 2, 4)):
        stayed = {name: value for name, value in begun.items() if f"encoder.layer.{place}." in name}
        assert len(stayed) == 16
        for name, value in stayed.items():
            assert torch.equal(value, own[name.replace(f"layer.{place}.", f"layer.{number}.")])
    assert not any("layer.3." in name for name in begun)
    built = variant.build(target, samples, context(tmp_path, tmp_path))
    assert "3 of 6 layers" in built.summary
    agrees = {metric.name: metric.value or 0.0 for metric in built.metrics}["agreement"]
    assert agrees > 0.9
    again = variant.wrap(copy.deepcopy(target.module))
    again.load_state_dict(built.module.state_dict())
    student = target.with_module(again.eval(), "6" * 64)
    x = samples.inputs[np.arange(32)]
    assert torch.equal(student.logits(x), target.with_module(built.module, "6" * 64).logits(x))
    configs: list[Any] = [module.get_submodule("body").config for module in (again, target.module)]
    assert [config.num_hidden_layers for config in configs] == [3, 6]
    fresh = variant.model_copy(update={"start": "random", "epochs": 1}).build(
        target, samples, context(tmp_path, tmp_path)
    )
    word = "body.bert.embeddings.word_embeddings.weight"
    assert not torch.allclose(fresh.module.state_dict()[word], own[word], atol=0.05)


def test_what_has_no_smaller_copy_is_refused_with_the_reason(project: Path, target: Target, tmp_path: Path) -> None:
    test = read(project, "test.csv")[1]
    variant = StudentVariant(train="train", epochs=1)
    with pytest.raises(UnsupportedError, match="only one layer"):
        variant.build(target, test, context(project, tmp_path))
    with pytest.raises(UnsupportedError, match=r"takes a transformers model.*distillation trains a student"):
        variant.wrap(torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten()))


class Bag(torch.nn.Module):
    """The mean of word embeddings, for ids alone ``(n, t)``."""

    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(8, 4, padding_idx=padding_idx)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(x).mean(1))


@pytest.mark.parametrize(("padding_idx", "pad", "told"), [(None, None, True), (0, None, False), (None, 0, False)])
def test_freelb_says_when_nothing_tells_what_pads(
    padding_idx: int | None, pad: int | None, told: bool, tmp_path: Path
) -> None:
    def tokens(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(word) % 8 for word in (text.split() + [""] * 4)[:4]] for text in texts])

    texts, labels = np.array(["a bb", "ccc", "dddd a", "bb"], dtype=object), np.array([0, 1, 1, 0])
    data = Samples(texts, labels, np.arange(4), list("abcd"), ("no", "yes"), "toy", "8" * 64)
    bag = Target(Bag(padding_idx), TokenEncode(tokens), ("no", "yes"), "text", (0.0, 1.0), CPU, "9" * 64)
    variant = FreeLBVariant(train="train", epochs=1, batch_size=4, pad=pad)
    built = variant.build(bag, data, FakeContext(tmp_path, variant="variant", seed=0, sources={"train": data}))
    assert any("name its id in `pad`" in warning for warning in built.warnings) == told
