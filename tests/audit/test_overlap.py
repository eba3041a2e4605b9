"""Overlap: planted copies are named, disjoint sets are not accused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.overlap import Overlap
from auditorch.audit.samples import Samples
from auditorch.audit.target import Target
from auditorch.reports.record import Gallery, Result, Table
from torch import nn

from .fakes import QUADRANTS, FakeContext, samples_of, toy_samples, toy_target


def sets() -> tuple[Samples, Samples]:
    """60 audited pictures: 5 are in the training set, 3 nearly so, the second of these under another label."""
    train, test = toy_samples(200, seed=1, noise=0.3), toy_samples(60, seed=2, noise=0.3)
    images, labels = np.array(test.inputs), test.labels.copy()
    source = np.array(train.inputs)
    images[:5], labels[:5] = source[20:25], train.labels[20:25]
    noisy = source[30:33].astype(int) + np.random.default_rng(0).integers(-2, 3, (3, 8, 8))
    images[5:8], labels[5:8] = noisy.clip(0, 255).astype(np.uint8), train.labels[30:33]
    labels[6] = (labels[6] + 1) % 4
    return train, samples_of(images, labels, QUADRANTS, start=500)


def audited(tmp_path: Path, train: Samples, test: Samples, target: Target | None = None, **options: Any) -> Result:
    context = FakeContext(tmp_path, "overlap", sources={"train.npz": train})
    return Overlap(train="train.npz", **options).run(target or toy_target(), test, context)


def values(result: Result) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in result.metrics}


def test_planted_copies_are_named(tmp_path: Path) -> None:
    train, test = sets()
    result = audited(tmp_path, train, test)
    assert values(result) == {
        "exact_overlap": 5 / 60,
        "near_overlap": 3 / 60,
        "overlap": 8 / 60,
        "label_conflicts": 1 / 8,
    }
    assert set(values(result)) == set(Overlap.metrics)
    assert result.findings[0].severity == "high"
    table, gallery = result.figures
    assert isinstance(table, Table)
    assert {row[0] for row in table.rows} == {f"image-{500 + i}" for i in range(8)}
    assert ("image-505", "image-30") in {row[:2] for row in table.rows}
    assert isinstance(gallery, Gallery)
    assert len(gallery.items) == 8


def test_sets_apart_are_not_accused(tmp_path: Path) -> None:
    result = audited(tmp_path, toy_samples(200, seed=1, noise=0.3), toy_samples(60, seed=2, noise=0.3))
    assert values(result)["overlap"] == 0
    assert values(result)["label_conflicts"] is None
    assert [finding.severity for finding in result.findings] == ["info"]
    assert result.figures == ()


def test_exact_only_a_limit_and_a_threshold(tmp_path: Path) -> None:
    train, test = sets()
    exact = audited(tmp_path, train, test, near=False)
    assert (values(exact)["exact_overlap"], values(exact)["near_overlap"]) == (5 / 60, 0)
    assert "Near duplicates." in exact.not_covered
    limited = audited(tmp_path, train, test, limit=22)
    assert values(limited)["exact_overlap"] == 2 / 60
    assert any("after the first 22" in text for text in limited.not_covered)
    assert values(audited(tmp_path, train, test, threshold=0.0))["near_overlap"] == 0


def test_verify_looks_again(tmp_path: Path) -> None:
    train, test = sets()
    context = FakeContext(tmp_path, "overlap", sources={"train.npz": train})
    check = Overlap(train="train.npz")
    result = check.run(toy_target(), test, context)

    def failed(claimed: Result = result, samples: Samples = test) -> list[str]:
        return [claim.what for claim in check.verify(toy_target(), samples, claimed, context) if not claim.ok]

    assert failed() == []
    assert "the same pairs are found again" in failed(samples=toy_samples(60, seed=2, noise=0.3))
    forged = tuple(m.model_copy(update={"value": 0.0}) if m.name == "overlap" else m for m in result.metrics)
    assert failed(result.model_copy(update={"metrics": forged})) == ["overlap follows from the data"]


class Texts:
    """Raw texts by position."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Any) -> list[str]:
        return [self.texts[i] for i in index]


@pytest.mark.parametrize("modality", ["text", "tabular"])
def test_texts_and_rows_have_their_own_distances(tmp_path: Path, modality: Any) -> None:
    rng = np.random.default_rng(0)
    if modality == "text":
        lines = [" ".join(rng.choice([f"w{i}" for i in range(50)], 25)) for _ in range(60)]
        inputs: list[Any] = [Texts(lines[:40]), Texts([lines[3], lines[4].upper(), *lines[40:]])]
    else:
        rows = rng.standard_normal((60, 5)).astype(np.float32)
        inputs = [rows[:40], np.concatenate([rows[3:4], rows[4:5] + 1e-4, rows[40:]])]
    sides = []
    for raw in inputs:
        n = len(raw)
        ids = np.arange(n)
        sides.append(Samples(raw, np.zeros(n, dtype=np.int64), ids, [str(i) for i in ids], ("a", "b"), "toy", "0"))
    target = Target(
        nn.Identity(), torch.as_tensor, ("a", "b"), modality, (-9.0, 9.0), torch.device("cpu"), "0", frozenset()
    )
    result = audited(tmp_path, sides[0], sides[1], target)
    assert (values(result)["exact_overlap"], values(result)["near_overlap"]) == (1 / 22, 1 / 22)
