"""Certificates of the vote over masked texts, against every mask and every substitution of small texts."""

from __future__ import annotations

import random
from itertools import combinations, product

import numpy as np
import pytest
import torch
from auditorch.attacks.text.passage import Passage
from auditorch.defenses.objectives import CrossEntropy
from auditorch.defenses.random_mask import RandomMask, certified_words, masked_versions, seen_share, words_kept
from hypothesis import given, settings
from hypothesis import strategies as st

N, VOCABULARY = 5, "abc"


def winner_share(text: tuple[str, ...], kept: int, table: random.Random, known: dict[tuple[str, ...], bool]) -> float:
    """Share of all masks under which a fixed random classifier, mostly true, says yes."""
    said = []
    for seen in combinations(range(N), kept):
        version = tuple(word if i in seen else "*" for i, word in enumerate(text))
        said.append(known.setdefault(version, table.random() < 0.85))
    return sum(said) / len(said)


@given(st.integers(0, 500), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_no_substitution_within_the_certificate_changes_the_vote(seed: int, kept: int) -> None:
    table, known = random.Random(seed), {}
    text = tuple(table.choice(VOCABULARY) for _ in range(N))
    p = winner_share(text, kept, table, known)
    proven = certified_words(p, N, kept)
    for other in product(VOCABULARY, repeat=N):
        changed = sum(a != b for a, b in zip(text, other, strict=True))
        if changed <= proven and p > 0.5:
            assert winner_share(other, kept, table, known) > 0.5


def test_the_certificate_is_tight() -> None:
    """One word in sight: d changed words reach d of n masks, so a unanimous vote of ten stands four and not five."""
    assert seen_share(10, 1, 4) == pytest.approx(0.4)
    assert certified_words(1.0, 10, 1) == 4
    assert certified_words(0.75, 10, 1) == 2
    assert certified_words(0.5, 10, 1) == 0
    for n, kept, changed in ((6, 2, 1), (6, 3, 2), (7, 2, 3)):
        masks = list(combinations(range(n), kept))
        share = sum(any(i < changed for i in mask) for mask in masks) / len(masks)
        assert seen_share(n, kept, changed) == pytest.approx(share)


def test_versions_hide_words_evenly_and_nothing_else() -> None:
    text = "One two, three... four - five!"
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(range(5), 0)
    for version in masked_versions(text, 0.6, 2000, "[MASK]", rng):
        kept = [word for word in Passage.of(text).words if word in version]
        assert len(kept) == words_kept(5, 0.6) == 2
        assert version.count("[MASK]") == 3
        assert version.endswith("!")
        for word in kept:
            seen[Passage.of(text).words.index(word)] += 1
    assert all(abs(count - 800) < 90 for count in seen.values()), seen
    assert list(masked_versions("...", 0.6, 2, "x", rng)) == ["...", "..."]
    assert [words_kept(n, 0.9) for n in (0, 1, 3, 20)] == [0, 1, 1, 2]


def test_training_hides_tokens_but_no_special_ones() -> None:
    ids = torch.arange(4000).view(20, 200) % 10
    x = torch.stack([ids, torch.ones_like(ids), torch.zeros_like(ids)], 1)
    defense = RandomMask(CrossEntropy(), 0.7, 99, (0, 1))
    hidden = defense.hidden(x, torch.Generator().manual_seed(0))
    assert torch.equal(hidden[:, 1:], x[:, 1:])
    assert torch.equal(hidden[:, 0][ids < 2], ids[ids < 2])
    others = hidden[:, 0][ids >= 2]
    assert float((others == 99).float().mean()) == pytest.approx(0.7, abs=0.03)
    assert torch.equal(others[others != 99], ids[ids >= 2][others != 99])
    assert torch.equal(defense.hidden(ids, torch.Generator().manual_seed(0)), hidden[:, 0])
