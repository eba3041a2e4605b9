"""A model that votes over masked texts: what it answers is counted by hand, and the certificate is of that vote."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.attacks.text.encoded import EncodedModel
from auditorch.audit.checks.text_certification import TextCertification
from auditorch.audit.checks.text_evasion import TextEvasion
from auditorch.audit.errors import UnsupportedError
from auditorch.audit.loading.model import load
from auditorch.audit.loading.tokens import HuggingFaceEncode
from auditorch.audit.loading.voting import UNDECIDED, VotingEncode, voter
from auditorch.audit.plan import missing_for
from auditorch.audit.samples import Samples
from auditorch.audit.spec import parse_spec
from auditorch.audit.target import Target
from auditorch.audit.variants.random_mask import RandomMaskVariant

from ..attacks.text_world import tiny_bert
from .fakes import FakeContext
from .test_text_variants import write_texts

pytest.importorskip("transformers")

OPTIONS = {"train": "train", "masked": 0.6, "copies": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Samples]:
    folder = tmp_path_factory.mktemp("votes")
    tiny_bert(folder / "bert")
    write_texts(folder / "test.csv", 40, 2)
    spec = {"version": 1, "model": {"source": "bert", "modality": "text"}, "data": {"source": "test.csv"},
            "checks": ["performance"]}  # fmt: skip
    return load(parse_spec(spec, folder), torch.device("cpu"))


def deployed(target: Target, **options: object) -> Target:
    """The vote of the model as it is, without training."""
    variant = RandomMaskVariant.model_validate({**OPTIONS, **options})
    return variant.deployed(target.with_module(variant.wrap(target.module).eval(), "1" * 64))


def counted(target: Target, words: list[str], kept: int) -> list[int]:
    """Votes by class over all masks, by a second implementation."""
    votes = [0] * len(target.classes)
    for seen in combinations(range(len(words)), kept):
        version = " ".join(word if i in seen else "[MASK]" for i, word in enumerate(words))
        votes[int(target.logits([version]).argmax())] += 1
    return votes


def test_the_answer_is_the_vote_over_all_masks_where_these_are_few(base: tuple[Target, Samples]) -> None:
    target, samples = base
    votes = deployed(target)
    assert votes.classes == (*target.classes, UNDECIDED)
    texts = [str(text) for text in samples.inputs[np.arange(40)]]
    short = [text for text in texts if len(text.split()) in (4, 5)]  # 6 and 10 masks
    assert len(short) >= 8
    logits = votes.logits(short)
    ties = 0
    for text, row in zip(short, logits, strict=True):
        words = text.split()
        hand = counted(target, words, 2)
        total = sum(hand) + 0.5 * len(hand)
        assert row[:-1].exp().tolist() == pytest.approx([(count + 0.5) / total for count in hand], rel=1e-4)
        ties += hand[0] == hand[1]
        assert int(row.argmax()) == (2 if hand[0] == hand[1] else int(np.argmax(hand)))
    assert ties < len(short)
    alone = torch.cat([votes.logits([text]) for text in short])
    assert torch.allclose(logits, alone, atol=1e-5), "whatever it is batched with"
    again = EncodedModel(votes.encode, votes.module, votes.device)([*short, *short])
    assert torch.allclose(again[: len(short)], logits, atol=1e-5)


def test_the_certificate_is_of_the_vote_that_answers(base: tuple[Target, Samples], tmp_path: Path) -> None:
    target, samples = base
    votes, check = deployed(target), TextCertification(draws=50, alpha=0.01)
    result = check.run(votes, samples, FakeContext(tmp_path))
    short = [row for row in range(40) if len(str(samples.inputs[np.array([row])][0]).split()) <= 5]
    answers = votes.logits([str(text) for text in samples.inputs[np.array(short)]]).argmax(1)
    right = int((answers == torch.from_numpy(samples.labels[short])).sum())
    alone = check.run(votes, samples.select(np.array(short)), FakeContext(tmp_path / "short"))
    clean = alone.metric("clean_accuracy")
    assert clean is not None
    assert (clean.value, clean.n) == (pytest.approx(right / len(short)), len(short))
    assert result.parameters["masked"] == 0.6
    assert all(claim.ok for claim in check.verify(votes, samples, result, FakeContext(tmp_path)))
    assert voter(votes).module is target.module
    assert voter(target) is target
    with pytest.raises(UnsupportedError, match=r"votes with 60 % of the words hidden by \[MASK\]"):
        TextCertification(masked=0.7).run(votes, samples, FakeContext(tmp_path))


def test_long_texts_have_as_many_versions_as_copies_and_the_same_masks(base: tuple[Target, Samples]) -> None:
    encode = deployed(base[0]).encode
    assert isinstance(encode, VotingEncode)
    assert isinstance(encode.plain, HuggingFaceEncode)
    words = ["good", *["film"] * 19]
    x, other = encode([" ".join(words), " ".join(["bad", *words[1:]])])
    assert x.shape[:2] == (16, 3)
    mask = encode.plain.tokenizer.mask_token_id
    assert ((x[:, 0] == mask).sum(1) == 12).all()
    hides = (x[:, 0, 1] == mask).nonzero().flatten()
    assert 0 < len(hides) < 16
    assert torch.equal(x[hides], other[hides]), "versions that hide the replaced word are the same"
    assert (x != other).flatten(1).any(1).sum() == 16 - len(hides)
    pairs = VotingEncode(encode.plain, 0.6, 16, column=0)([("good film plot scene story", "bad")])
    assert pairs.shape[:2] == (1, 16)
    used = pairs[0, :, 1].any(1)
    assert int(used.sum()) == 10
    bad = encode.plain.tokenizer.convert_tokens_to_ids("bad")
    assert (pairs[0, used, 0] == bad).any(1).all(), "the other text of a pair stays"


def test_what_needs_gradients_is_skipped_with_the_reason(base: tuple[Target, Samples]) -> None:
    check = TextEvasion(attack="hotflip")
    assert missing_for(check, base[0]) == ""
    assert "needs gradients" in missing_for(check, deployed(base[0]))
