"""Inversion: a model that learned its classes shows them, one that learned nothing does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.inversion import Inversion
from auditorch.audit.errors import DataError
from auditorch.reports.record import Gallery, Result
from torch import nn

from .fakes import FakeContext, linear_model, samples_of, small_cnn, toy_samples, toy_target


def audited(tmp_path: Path, module: nn.Module | None = None, **options: Any) -> tuple[Inversion, Result, FakeContext]:
    context = FakeContext(tmp_path, "inversion", seed=2, sources={"train.npz": toy_samples(80, seed=4)})
    check = Inversion.model_validate({"steps": 40, "attempts": 3, **options})
    return check, check.run(toy_target(module or linear_model()), toy_samples(80), context), context


def value(result: Result, name: str) -> float:
    found = result.metric(name)
    assert found is not None, name
    assert found.value is not None, name
    return found.value


@pytest.mark.parametrize("start", ["grey", "mean"])
def test_classes_that_were_learned_are_drawn(tmp_path: Path, start: str) -> None:
    _, result, context = audited(tmp_path, start=start, train="train.npz")
    assert value(result, "similarity") > 0.8
    assert abs(value(result, "baseline_similarity")) < 0.4
    assert value(result, "identified") == 1
    assert {metric.name for metric in result.metrics} == set(Inversion.metrics)
    assert all(metric.n == 12 for metric in result.metrics)
    assert result.findings[0].severity == "medium"
    gallery = result.figures[0]
    assert isinstance(gallery, Gallery)
    tensors = context.read_evidence(result.evidence[0])
    assert all(picture.tensor in tensors for picture in gallery.pictures)
    assert [item.sample_id for item in gallery.items] == list(toy_samples().classes)


def test_a_model_that_learned_nothing_shows_nothing(tmp_path: Path) -> None:
    _, result, _ = audited(tmp_path, small_cnn(seed=11))
    gain = result.metric("similarity_gain")
    assert gain is not None
    assert gain.ci_low is not None
    assert gain.ci_low < 0.15
    assert result.findings[0].severity in ("info", "low")


def test_verify_asks_again_and_recomputes(tmp_path: Path) -> None:
    check, result, context = audited(tmp_path)

    def failed(claimed: Result = result, module: nn.Module | None = None, n: int = 80) -> list[str]:
        target = toy_target(module)
        return [claim.what for claim in check.verify(target, toy_samples(n), claimed, context) if not claim.ok]

    assert failed() == []
    assert failed(module=small_cnn()) == ["the model answers to the pictures as recorded"]
    assert failed(n=40) == ["the class means are those of these data"]
    forged = tuple(m.model_copy(update={"value": 0.0}) if m.name == "identified" else m for m in result.metrics)
    assert failed(result.model_copy(update={"metrics": forged})) == ["identified follows from the pictures"]


def test_a_class_without_samples_is_left_out_and_one_class_is_refused(tmp_path: Path) -> None:
    samples = toy_samples(80)
    three = samples.select(np.flatnonzero(samples.labels != 2))
    check, context = Inversion(steps=4), FakeContext(tmp_path, "inversion")
    result = check.run(toy_target(), three, context)
    assert any("1 classes have no samples" in text for text in result.warnings)
    assert torch.equal(context.read_evidence(result.evidence[0])["of_class"], torch.tensor([0, 0, 1, 1, 3, 3]))
    one = samples_of(np.asarray(samples.inputs)[:4], np.zeros(4, dtype=np.int64), samples.classes)
    with pytest.raises(DataError, match="one only"):
        check.run(toy_target(), one, context)
