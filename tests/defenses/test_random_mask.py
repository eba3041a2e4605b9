"""Certificates of the vote over masked texts, against every mask and every substitution of small texts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np
import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.text.passage import Passage
from auditorch.defenses.objectives import CrossEntropy
from auditorch.defenses.random_mask import (
    Masks,
    RandomMask,
    Voted,
    certified_words,
    estimated_words,
    hidden_share,
    words_kept,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

N, VOCABULARY = 5, "abc"

Said = Callable[[tuple[str, ...]], bool]


def versions(text: tuple[str, ...], kept: int) -> list[tuple[str, ...]]:
    """All versions of a text, by a second implementation."""
    return [tuple(word if i in seen else "*" for i, word in enumerate(text)) for seen in combinations(range(N), kept)]


def winner_share(text: tuple[str, ...], kept: int, says: Said) -> float:
    """Share of all versions of a text to which a classifier says yes."""
    said = [says(version) for version in versions(text, kept)]
    return sum(said) / len(said)


def certificate(text: tuple[str, ...], kept: int, says: Said) -> int:
    masks = Masks.draw(len(text), kept, 100, np.random.default_rng(0))
    assert masks.complete
    shown = [" ".join(version).split() for version in masks.versions(Passage.of(" ".join(text)), "*")]
    return certified_words(np.array([says(tuple(version)) for version in shown]), masks, 0.001)


@given(st.integers(0, 500), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_the_certificate_of_a_counted_vote_is_exact(seed: int, kept: int) -> None:
    """No substitution within it changes the vote of a random classifier; one beyond it changes that of a hostile one,
    which answers the same on the text and no wherever it sees a word that was not in it."""
    table, known = random.Random(seed), dict[tuple[str, ...], bool]()
    text = tuple(table.choice(VOCABULARY) for _ in range(N))

    def says(version: tuple[str, ...]) -> bool:
        return known.setdefault(version, table.random() < 0.85)

    def hostile(version: tuple[str, ...]) -> bool:
        return says(version) if all(word in (own, "*") for word, own in zip(version, text, strict=True)) else False

    proven, yes = certificate(text, kept, says), winner_share(text, kept, says) > 0.5
    assert (proven >= 0) == yes
    broken = []
    for other in product("abcx", repeat=N):
        changed = sum(a != b for a, b in zip(text, other, strict=True))
        if changed <= proven:
            assert winner_share(other, kept, says) > 0.5
        elif winner_share(other, kept, hostile) <= 0.5:
            broken.append(changed)
    assert not yes or min(broken) == proven + 1


def masks_of(n: int, kept: int, draws: int, seed: int = 0) -> Masks:
    return Masks.draw(n, kept, draws, np.random.default_rng(seed))


def test_a_unanimous_vote_of_ten_words_with_one_in_sight_stands_four() -> None:
    masks = masks_of(10, 1, 10)
    assert masks.complete
    assert certified_words(np.ones(10, dtype=np.bool_), masks, 0.001) == 4
    assert certified_words(masks.seen[:, :8].max(1), masks, 0.001) == 2
    assert certified_words(masks.seen[:, :5].max(1), masks, 0.001) == -1, "half is no majority"
    for n, kept, changed in ((6, 2, 1), (6, 3, 2), (7, 2, 3)):
        every = list(combinations(range(n), kept))
        share = sum(all(i >= changed for i in mask) for mask in every) / len(every)
        assert hidden_share(n, kept, changed) == pytest.approx(share)


def important(masks: Masks, without: float, seed: int) -> NDArray[np.bool_]:
    """Votes of a classifier that is right where it sees word 0, and else with a probability: on average over all
    words it looks safe."""
    lucky = np.random.default_rng([seed, 1]).random(len(masks.seen)) < without
    return masks.seen[:, 0] | lucky


def test_the_mean_over_words_is_no_bound_and_the_certificate_is_one() -> None:
    """20 words, 6 in sight. Right on .3 + .7 * .67 = .769 of the versions, of which the paper's estimate lets .538
    survive any one word; but those that hide word 0 and are right are only .469 of all."""
    wrong = estimated = 0
    for seed in range(200):
        masks = masks_of(20, 6, 400, seed)
        votes = important(masks, 0.67, seed)
        wrong += certified_words(votes, masks, 0.05) >= 1
        estimated += estimated_words(float(votes.mean()), 20, 6) >= 1
    assert estimated > 150
    assert wrong <= 10, "an error of 5 % at most, and only where the sample is far off"
    votes = [important(masks_of(20, 6, 400, seed), 0.714, seed) for seed in range(400)]  # word 0 hidden: .4998 of all
    wrong = sum(certified_words(vote, masks_of(20, 6, 400, seed), 0.05) >= 1 for seed, vote in enumerate(votes))
    assert wrong <= 20 + 2 * 20**0.5


def test_votes_that_hide_a_set_certify_more_than_beta_of_one() -> None:
    """Right on 78 % of the versions whatever they hide: less .3 that is no majority, times .7 it is one."""
    masks = masks_of(10, 3, 100_000)
    assert masks.complete
    votes = np.ones(120, dtype=np.bool_)
    votes[np.random.default_rng(0).permutation(120)[:26]] = False
    assert votes.mean() - (1 - hidden_share(10, 3, 1)) < 0.5
    worst = min((votes & ~masks.seen[:, i]).sum() for i in range(10)) / 120
    assert worst > 0.5
    assert certified_words(votes, masks, 0.001) == 1


def test_too_many_sets_are_bounded_with_beta_of_one() -> None:
    masks = masks_of(200, 20, 2000)
    unanimous = certified_words(np.ones(2000, dtype=np.bool_), masks, 0.001)
    p = 0.001 ** (1 / 2000)
    expected = max(d for d in range(20) if p - (1 - hidden_share(200, 20, d)) > 0.5)
    assert unanimous == expected == 6


def test_the_mean_of_beta_over_sets_is_p() -> None:
    """RanMASK's Monte Carlo, counted out: the share of right versions among those that show a word of a random set."""
    masks = masks_of(6, 2, 15)
    votes = np.random.default_rng(3).random(15) < 0.7
    right = shown = 0
    for changed in combinations(range(6), 2):
        seen = masks.seen[:, changed].any(1)
        right, shown = right + int((seen & votes).sum()), shown + int(seen.sum())
    assert right / shown == pytest.approx(votes.mean())
    assert estimated_words(0.8, 10, 3) == 1
    assert estimated_words(0.7, 10, 3) == 0


def test_versions_hide_words_evenly_and_nothing_else() -> None:
    text = "One two, three... four - five six!"
    passage = Passage.of(text)
    masks = masks_of(6, 2, 14)
    assert not masks.complete
    for version, row in zip(masks.versions(passage, "[MASK]"), masks.seen, strict=True):
        assert [word for word in passage.words if word in version] == [passage.words[i] for i in np.flatnonzero(row)]
        assert version.count("[MASK]") == 4
        assert version.endswith("!")
    counts = masks_of(40, 12, 2000).seen.sum(0)
    assert counts.sum() == 2000 * 12
    assert all(abs(count - 600) < 90 for count in counts), counts
    assert list(masks_of(0, 0, 5).versions(Passage.of("..."), "x")) == ["..."]
    assert [words_kept(n, 0.9) for n in (0, 1, 3, 20)] == [0, 1, 1, 2]
    assert len({row.tobytes() for row in masks_of(6, 2, 15).seen}) == 15


class First(nn.Module):
    """Says the class that the largest id of a text names, modulo 3; remembers how many rows it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return nn.functional.one_hot(x[:, 0].amax(1) % 3, 3).float()


def encoded_versions(*texts: Sequence[int]) -> Tensor:
    """Versions of one token each, id 0 for none: ``(n, copies, 3, 2)``."""
    ids = torch.tensor([[[i, 0] for i in text] for text in texts])
    return torch.stack([ids, (ids > 0).long(), torch.zeros_like(ids)], 2)


def test_a_vote_answers_by_majority_or_not_at_all() -> None:
    body = First()
    x = encoded_versions([4] * 9 + [5], [4, 5] * 5, [4] * 7 + [5] * 3, [1, 1, 5] + [0] * 7, [1, 5] + [0] * 8)
    found = Voted(body, alpha=0.05)(x)
    assert body.rows == 3, "equal versions are looked at once"
    # 9 to 1 has a two-sided p of .021, 7 to 3 one of .34; two of all three is a majority, one of both a tie.
    assert found.argmax(1).tolist() == [1, 3, 3, 1, 3]
    assert found[0].exp()[:3].tolist() == pytest.approx([0.5 / 11.5, 9.5 / 11.5, 1.5 / 11.5])
    assert float(found[2, 3] - found[2, 1]) == pytest.approx(math.log(0.34375 / 0.05), rel=1e-5)
    alone = torch.cat([Voted(body)(row[None]) for row in x])
    assert torch.equal(found, alone)
    assert Voted(body, alpha=0.5)(x).argmax(1).tolist() == [1, 3, 1, 1, 3]
    with pytest.raises(UnsupportedError, match="alpha is 1"):
        Voted(body, 1.0)


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
