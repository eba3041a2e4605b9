"""Exposure of planted canaries on models whose memory is known."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.canary_exposure import CanaryExposure
from auditorch.audit.errors import SpecError, UnsupportedError
from auditorch.audit.samples import Samples
from auditorch.audit.target import Target
from pydantic import ValidationError
from torch import Tensor, nn

from .fakes import FakeContext

SAMPLES = Samples(np.array(["a"], dtype=object), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), ["0"],
                  ("no", "yes"), "toy", "0" * 64)  # fmt: skip


class Memory(nn.Module):
    """Log odds of `yes`: 5 for the numbers it remembers, pseudo-random below 1 for others."""

    def __init__(self, *known: int) -> None:
        super().__init__()
        self.known = known

    def forward(self, x: Tensor) -> Tensor:
        s = torch.stack([torch.frac(row.double() * 0.6180339887).float() for row in x[:, 0]])
        s = torch.where(torch.isin(x[:, 0], torch.tensor(self.known)), 5.0, s)
        return torch.stack([-s, s], 1) / 2


def target(*known: int) -> Target:
    def encode(raw: Any) -> Tensor:
        return torch.tensor([[int((re.findall(r"\d+", str(text)) or ["0"])[0])] for text in raw])

    return Target(Memory(*known), encode, ("no", "yes"), "text", (0.0, 1.0), torch.device("cpu"), "0" * 64)


def check(**options: Any) -> CanaryExposure:
    return CanaryExposure.model_validate({"template": "code {}", "planted": ["314"], "label": "yes", **options})


def test_a_remembered_canary_has_all_the_bits_of_its_form(tmp_path: Path) -> None:
    made, context = check(), FakeContext(tmp_path)
    result = made.run(target(314), SAMPLES, context)
    found = {metric.name: metric.value for metric in result.metrics}
    assert found["max_exposure"] == pytest.approx(math.log2(1000))
    assert found["exposed"] == 1
    assert [finding.severity for finding in result.findings] == ["high"]
    assert all(claim.ok for claim in made.verify(target(314), SAMPLES, result, context))
    wrong = {claim.what for claim in made.verify(target(), SAMPLES, result, context) if not claim.ok}
    assert wrong == {"the model's losses are as recorded"}


def test_what_was_not_remembered_does_not_stand_out(tmp_path: Path) -> None:
    numbers = torch.arange(1000)
    order = Memory()(numbers[:, None])[:, 1].argsort(descending=True)
    middle = int(numbers[order][499])
    result = check(planted=[f"{middle:03}"]).run(target(), SAMPLES, FakeContext(tmp_path))
    found = {metric.name: metric.value for metric in result.metrics}
    assert found["max_exposure"] == pytest.approx(1, abs=0.01), "half of the fillings are likelier"
    assert found["exposed"] == 0
    assert not result.findings


def test_a_sample_of_others_bounds_the_exposure(tmp_path: Path) -> None:
    made = check(planted=["31415", "27182"], others=200)
    result = made.run(target(31415), SAMPLES, FakeContext(tmp_path))
    metric = result.metric("max_exposure")
    assert metric is not None
    assert (metric.value, metric.n) == (pytest.approx(math.log2(201)), 200)
    assert metric.ci_low is not None
    assert metric.ci_high is not None
    # No reference of 200 is likelier: at most 1 - .025 ** (1 / 200) of all are.
    assert metric.ci_low == pytest.approx(-math.log2(1 - 0.025 ** (1 / 200)), abs=0.01)
    assert metric.ci_high == pytest.approx(math.log2(1e5 - 1))
    share = result.metric("exposed")
    assert share is not None
    assert (share.value, share.n) == (0.5, 2)


def test_what_has_no_single_form_is_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"template": "code"}, "once"),
        ({"planted": ["31", "314"]}, "one length"),
        ({"planted": ["3a4"]}, "alphabet"),
        ({"planted": ["3"]}, "only 10 secrets"),
    ):
        with pytest.raises(ValidationError, match=message):
            check(**options)
    with pytest.raises(SpecError, match="Did you mean 'yes'"):
        check(label="yess").run(target(), SAMPLES, FakeContext(tmp_path))


def pairs() -> Samples:
    texts = np.array([["a", "b"]], dtype=object)
    return Samples(texts, SAMPLES.labels, SAMPLES.ids, ["0"], SAMPLES.classes, "toy", "0" * 64)


@pytest.mark.parametrize(("column", "place"), [("first", 0), ("second", 1)])
def test_a_canary_in_a_pair_is_ranked_beside_the_text_it_was_planted_with(
    column: str, place: int, tmp_path: Path
) -> None:
    """The model reads the number of one text, and only beside the right other one."""

    def encode(raw: Any) -> Tensor:
        rows = [row if row[1 - place] == "as planted 7" else ("0", "0") for row in raw]
        return torch.tensor([[int((re.findall(r"\d+", str(row[place])) or ["0"])[0])] for row in rows])

    reads = Target(Memory(314), encode, ("no", "yes"), "text", (0.0, 1.0), torch.device("cpu"), "0" * 64)
    made, context = check(beside="as planted 7", column=column), FakeContext(tmp_path)
    result = made.run(reads, pairs(), context)
    assert {metric.name: metric.value for metric in result.metrics}["max_exposure"] == pytest.approx(math.log2(1000))
    assert all(claim.ok for claim in made.verify(reads, pairs(), result, context))
    elsewhere = check(beside="another", column=column).run(reads, pairs(), context)
    assert {metric.name: metric.value for metric in elsewhere.metrics}["exposed"] == 0


def test_pairs_need_the_other_text_and_single_texts_have_none(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="reads pairs of texts: name the planted records' other text in beside"):
        check().run(target(), pairs(), FakeContext(tmp_path))
    with pytest.raises(UnsupportedError, match="reads single texts: leave out beside"):
        check(beside="b").run(target(), SAMPLES, FakeContext(tmp_path))
