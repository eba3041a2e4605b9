"""Per-sample outcomes read back from evidence: only what explains its metric, in the record's order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.audit.context import write_evidence
from auditorch.audit.outcomes import Outcomes, aligned, outcomes
from auditorch.reports.record import Metric, Result
from torch import Tensor

IDS = torch.tensor([7, 3, 5, 1])


def result(folder: Path, tensors: dict[str, Tensor], metrics: dict[str, float], n: int = 4) -> Result:
    evidence = write_evidence(folder, "evidence/base/c.safetensors", "scores", tensors)
    listed = tuple(Metric(name=name, value=value, n=n) for name, value in metrics.items())
    return Result(check="c", id="c", title="C", status="ok", metrics=listed, evidence=(evidence,))


def test_outcomes_come_sorted_by_id_and_in_the_order_of_the_metrics(tmp_path: Path) -> None:
    tensors = {name: torch.tensor([1.0, 0.0, 0.0, value]) for value, name in enumerate("edcba")}
    metrics = {name: float(tensors[name].mean()) for name in "badec"}
    found = outcomes(result(tmp_path, {"ids": IDS, **tensors}, metrics), tmp_path)
    assert list(found) == list("badec")
    assert found["a"].ids.tolist() == [1, 3, 5, 7]
    assert found["a"].values.tolist() == [4.0, 0.0, 0.0, 1.0]


def test_accuracy_and_loss_follow_from_logits(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    labels = torch.tensor([0, 1, 2, 2])
    loss = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    metrics = {"accuracy": 0.75, "log_loss": float(loss.mean()), "top_2_accuracy": 0.75}
    found = outcomes(result(tmp_path, {"ids": IDS, "logits": logits, "labels": labels}, metrics), tmp_path)
    assert found["accuracy"].values.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert found["log_loss"].values == pytest.approx(loss[IDS.argsort()].numpy())
    assert found["top_2_accuracy"].values.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_robust_accuracy_is_the_set_of_its_size(tmp_path: Path) -> None:
    tensors = {
        "ids": IDS,
        "labels": torch.zeros(4, dtype=torch.int64),
        "clean_logits": torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]]),
        "rows": torch.tensor([1, 2]),
        "radius": torch.tensor([0.05, 0.1], dtype=torch.float64),
    }
    metrics = {"clean_accuracy": 0.75, "robust_accuracy": 0.25, "robust_accuracy_at_0.05": 0.5}
    found = outcomes(result(tmp_path, tensors, metrics), tmp_path)
    assert found["robust_accuracy"].values[IDS.argsort().argsort()].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found["robust_accuracy_at_0.05"].values[IDS.argsort().argsort()].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_nothing_is_taken_on_trust(tmp_path: Path) -> None:
    values = torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert outcomes(result(tmp_path, {"ids": IDS, "a": values}, {"a": 0.6}), tmp_path) == {}
    assert outcomes(result(tmp_path, {"ids": IDS, "a": values}, {"a": 0.5}, n=5), tmp_path) == {}
    assert outcomes(result(tmp_path, {"ids": IDS * 0, "a": values}, {"a": 0.5}), tmp_path) == {}
    assert outcomes(result(tmp_path, {"a": values}, {"a": 0.5}), tmp_path) == {}
    whole = result(tmp_path, {"ids": IDS, "a": values}, {"a": 0.5})
    assert list(outcomes(whole, tmp_path)) == ["a"]
    (tmp_path / "evidence/base/c.safetensors").write_bytes(b"changed")
    assert outcomes(whole, tmp_path) == {}


def test_only_the_same_samples_are_paired() -> None:
    first, second = (Outcomes(np.array(ids), np.array([0.0, 1.0])) for ids in ([1, 2], [1, 3]))
    assert aligned(first, first) is not None
    assert aligned(first, second) is None
