"""Attribute inference: a model that remembers rows is named, what anybody could guess is no leak."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.attribute_inference import AttributeInference
from auditorch.audit.errors import DataError
from auditorch.audit.samples import Samples
from auditorch.audit.target import Target
from auditorch.privacy.attribute import Guesses
from auditorch.reports.record import Result
from torch import Tensor, nn

from .fakes import FakeContext


def people(n: int, seed: int, told: float = 0.0) -> Samples:
    """Column 1 is hidden, of three values; column 2 repeats it in a share ``told`` of the rows."""
    rng = np.random.default_rng(seed)
    hidden = rng.integers(0, 3, n)
    third = np.where(rng.random(n) < told, hidden, rng.integers(0, 3, n))
    rows = np.stack([rng.standard_normal(n), hidden, third], 1).astype(np.float32)
    ids = np.arange(n)
    return Samples(rows, rng.integers(0, 2, n), ids, [str(i) for i in ids], ("no", "yes"), "toy", str(seed))


class Remembers(nn.Module):
    """Sure of the label of rows it has seen, hidden value included; undecided about all others."""

    def __init__(self, data: Samples) -> None:
        super().__init__()
        rows = np.asarray(data.inputs[np.arange(len(data))]).tolist()
        self.known = {tuple(row): int(label) for row, label in zip(rows, data.labels, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 2)
        for i, row in enumerate(x.tolist()):
            if tuple(row) in self.known:
                logits[i, self.known[tuple(row)]] = 4.0
        return logits


def encode(raw: Any) -> Tensor:
    return torch.from_numpy(np.asarray(raw, dtype=np.float32))


def target(module: nn.Module) -> Target:
    return Target(module, encode, ("no", "yes"), "tabular", (-9.0, 9.0), torch.device("cpu"), "0")


TRAIN, TEST = people(300, 1), people(400, 2)


class Leaky(Remembers):
    """Remembers its training rows, and those that the attacker knows and thus can learn from."""

    def __init__(self) -> None:
        super().__init__(TRAIN)
        self.known |= Remembers(TEST.select(np.arange(0, 400, 2))).known


def audited(tmp_path: Path, module: nn.Module, train: Samples = TRAIN, test: Samples = TEST, **options: Any) -> Result:
    context = FakeContext(tmp_path, "attribute_inference", sources={"train.npz": train})
    check = AttributeInference.model_validate({"train": "train.npz", "column": 1, **options})
    return check.run(target(module), test, context)


def metric(result: Result, name: str) -> tuple[float, float, float]:
    found = result.metric(name)
    assert found is not None
    assert found.value is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    return found.ci_low, found.value, found.ci_high


def test_a_model_that_remembers_rows_is_named(tmp_path: Path) -> None:
    result = audited(tmp_path, Leaky())
    assert metric(result, "attack_accuracy")[1] > 0.95
    assert metric(result, "baseline_accuracy")[1] == pytest.approx(1 / 3, abs=0.1)
    assert metric(result, "gain")[0] > 0.5
    assert abs(metric(result, "gain_nonmembers")[1]) < 0.15
    assert metric(result, "memorised")[0] > 0.4
    assert result.findings[0].severity == "high"
    assert {found.name for found in result.metrics} == set(AttributeInference.metrics)


def test_what_anybody_could_guess_is_no_leak(tmp_path: Path) -> None:
    result = audited(tmp_path, Remembers(people(2, 9)), people(300, 1, told=0.9), people(400, 2, told=0.9))
    assert metric(result, "attack_accuracy")[1] > 0.85
    low, _, high = metric(result, "gain")
    assert low <= 0 <= high
    assert result.findings[0].severity == "info"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    from auditorch.audit.checks.attribute_inference import Found, _metrics

    rng, missed = np.random.default_rng(0), 0
    for _ in range(300):
        sides = []
        for n in (150, 120):
            truth = np.zeros(n, dtype=np.int64)
            attack, baseline = (rng.random(n) > 0.5).astype(np.int64), (rng.random(n) > 0.4).astype(np.int64)
            sides.append(Guesses(truth, attack, baseline, np.array([0.0, 1.0])))
        found = {m.name: m for m in _metrics(Found(*sides))}["gain"]
        assert found.ci_low is not None
        assert found.ci_high is not None
        missed += not found.ci_low <= 0.1 <= found.ci_high
    assert 4 <= missed <= 27


def test_verify_guesses_again(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, "attribute_inference", sources={"train.npz": TRAIN})
    check = AttributeInference(train="train.npz", column=1)
    result = check.run(target(Leaky()), TEST, context)

    def failed(claimed: Result = result, module: nn.Module | None = None, samples: Samples = TEST) -> list[str]:
        claims = check.verify(target(module or Leaky()), samples, claimed, context)
        return [claim.what for claim in claims if not claim.ok]

    assert failed() == []
    assert failed(module=Remembers(people(2, 9))) == ["the guesses follow from the model's answers"]
    assert "the hidden values are those of these data" in failed(samples=people(400, 3))
    forged = tuple(m.model_copy(update={"value": 0.0}) if m.name == "gain" else m for m in result.metrics)
    assert failed(result.model_copy(update={"metrics": forged})) == ["gain follows from the guesses"]


@pytest.mark.parametrize(
    ("options", "test", "message"),
    [({"column": 5}, TEST, "no column 5"), ({}, TEST.select(np.arange(30)), "too few")],
)
def test_what_cannot_be_guessed_is_refused(
    tmp_path: Path, options: dict[str, Any], test: Samples, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        audited(tmp_path, Leaky(), test=test, **options)
