"""The check of certified texts on a model whose vote can be counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.audit.checks.text_certification import TextCertification
from auditorch.audit.errors import UnsupportedError
from auditorch.audit.samples import Samples
from auditorch.audit.target import Target
from torch import Tensor, nn

from .fakes import FakeContext

TEXTS = ["good " * 10, "good one two three four five six seven eight nine", "bad", "good"]


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-x, x], 1)


def encode(raw: np.ndarray) -> Tensor:
    """One column: whether the text has the word ``good``."""
    return torch.tensor([[1.0 if "good" in str(text).split() else -1.0] for text in raw])


TARGET = Target(Sign(), encode, ("no", "yes"), "text", (0.0, 1.0), torch.device("cpu"), "0" * 64)


def samples() -> Samples:
    ids = np.arange(4, dtype=np.int64)
    labels = np.array([1, 1, 0, 1], dtype=np.int64)
    names = [str(i) for i in ids]
    return Samples(np.array(TEXTS, dtype=object), labels, ids, names, ("no", "yes"), "toy", "0" * 64)


def test_certificates_are_those_of_the_vote(tmp_path: Path) -> None:
    check, context = TextCertification(masked=0.9, mask="*", draws=400, words=5), FakeContext(tmp_path)
    result = check.run(TARGET, samples(), context)
    assert result.forwards == 10 + 10 + 1 + 1, "all masks, where there are few"
    found = {metric.name: (metric.value, metric.n) for metric in result.metrics}
    # Ten times good: unanimous over all ten masks, so four of ten words; one good in ten words: the vote says no; a
    # single word is always in sight, right, and worth no certificate.
    assert found["clean_accuracy"] == (0.75, 4)
    assert found["certified_accuracy"] == (0.25, 4)
    assert found["certified_accuracy_at_4"] == (0.25, 4)
    assert found["certified_accuracy_at_5"] == (0.0, 4)
    assert found["abstained"] == (0.0, 4)
    assert all(claim.ok for claim in check.verify(TARGET, samples(), result, context))
    other = Target(nn.Sequential(Sign(), nn.Linear(2, 2)), encode, ("no", "yes"), "text", (0.0, 1.0),
                   torch.device("cpu"), "0" * 64)  # fmt: skip
    with torch.no_grad():
        other.module[1].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # type: ignore[index, union-attr]
        other.module[1].bias.zero_()  # type: ignore[index, union-attr]
    wrong = {claim.what for claim in check.verify(other, samples(), result, context) if not claim.ok}
    assert wrong == {"votes are counted again as recorded"}


def test_a_near_tie_is_no_answer(tmp_path: Path) -> None:
    """Two words of which one is in sight: one vote each way."""
    data = samples()
    data = Samples(np.array(["good film"], dtype=object), data.labels[:1], data.ids[:1], ["0"], data.classes, "t", "0")
    result = TextCertification(masked=0.6, mask="*", draws=200).run(TARGET, data, FakeContext(tmp_path))
    found = {metric.name: metric.value for metric in result.metrics}
    assert found["abstained"] == 1
    assert found["clean_accuracy"] == 0


def test_a_mask_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="name a word in `mask`"):
        TextCertification().run(TARGET, samples(), FakeContext(tmp_path))


def test_many_masks_are_sampled_and_a_word_that_decides_alone_is_found(tmp_path: Path) -> None:
    """20 words, 6 in sight: 38,760 masks. All words but one say yes; where that is in sight the answer is no."""

    def fragile(raw: np.ndarray) -> Tensor:
        return torch.tensor([[-1.0 if "alas" in str(text).split() else 1.0] for text in raw])

    words = " ".join(["good"] * 19)
    texts = np.array([f"{words} good", f"{words} alas"], dtype=object)
    data = Samples(texts, samples().labels[:2], samples().ids[:2], ["0", "1"], ("no", "yes"), "toy", "0" * 64)
    target = Target(Sign(), fragile, ("no", "yes"), "text", (0.0, 1.0), torch.device("cpu"), "0" * 64)
    check, context = TextCertification(mask="*", draws=1000, alpha=0.01), FakeContext(tmp_path)
    result = check.run(target, data, context)
    assert result.forwards == 2 * 1050
    found = {metric.name: metric.value for metric in result.metrics}
    # Unanimous: .7 of the masks hide any one word, .479 any two. With alas .7 of them say yes, but only .479 once any
    # other word may be replaced as well.
    assert found["clean_accuracy"] == 1
    assert found["certified_accuracy"] == 0.5
    assert found["certified_accuracy_at_2"] == 0
    assert all(claim.ok for claim in check.verify(target, data, result, context))
    changed = context.read_evidence(result.evidence[0])
    changed["said"][60:100] = 0
    forged = result.model_copy(update={"evidence": (context.evidence("votes", changed, "forged"),)})
    failed = {claim.what for claim in check.verify(target, data, forged, context) if not claim.ok}
    assert "votes are counted again as recorded" in failed
