"""Overlap: planted copies, exact and altered, are found, and unrelated records are not, without comparing all pairs."""

from typing import Any

import numpy as np
import pytest
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy.overlap import (
    Match,
    _bands,
    _candidates,
    _index,
    exact_matches,
    image_matches,
    perceptual_hash,
    row_matches,
    text_matches,
)
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

WORDS = [f"word{i}" for i in range(20)]


def pictures(n: int, seed: int, side: int = 24) -> NDArray[Any]:
    """Smooth random pictures ``(n, 1, side, side)``."""
    noise = np.random.default_rng(seed).standard_normal((n, 1, side, side))
    smooth = gaussian_filter(noise, (0, 0, 2.5, 2.5))
    return np.clip(0.5 + smooth / smooth.std() / 5, 0, 1)


def altered(x: NDArray[Any], kind: str) -> NDArray[Any]:
    rng = np.random.default_rng(9)
    match kind:
        case "noise":
            return np.clip(x + 0.01 * rng.standard_normal(x.shape), 0, 1)
        case "brightness":
            return np.clip(0.9 * x + 0.05, 0, 1)
        case _:
            return np.round(x * 31) / 31


@pytest.mark.parametrize("kind", ["noise", "brightness", "grey levels"])
def test_altered_pictures_are_found_and_others_are_not(kind: str) -> None:
    train, test = pictures(1500, 0), pictures(300, 1)
    test[:40] = altered(train[100:140], kind)
    test[40:50] = train[7:17]
    found = {match.test: match for match in image_matches(test, train)}
    near = [i for i in range(40) if i in found]
    assert len(near) >= 38
    assert all(found[i].train == 100 + i and not found[i].exact for i in near)
    assert all(found[40 + i] == Match(40 + i, 7 + i, True, 0.0) for i in range(10))
    assert [i for i in found if i >= 50] == []


def test_a_hash_changes_little_with_the_picture() -> None:
    x = pictures(200, 2)
    ours, noisy, other = (perceptual_hash(p) for p in (x, altered(x, "noise"), pictures(200, 3)))
    apart = [np.bitwise_count(ours ^ theirs).mean() for theirs in (noisy, other)]
    assert apart[0] < 3
    assert 28 < apart[1] < 36


def test_small_and_even_pictures_do_not_break_it() -> None:
    x = pictures(20, 4, side=6)
    assert len(image_matches(x, x)) == 20
    even = np.full((2, 1, 6, 6), 0.3)
    assert image_matches(even, x) == []
    with pytest.raises(UnsupportedError, match="equal sizes"):
        image_matches(x, pictures(2, 0))


def sentences(n: int, seed: int, length: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length)) for _ in range(n)]


def test_texts_with_a_word_changed_are_found_and_others_are_not() -> None:
    train, test = sentences(800, 0), sentences(200, 1)
    for i in range(30):
        words = train[50 + i].split()
        words[i % 30] = "elsewhere"
        test[i] = " ".join(words).title() + "!"
    test[30] = train[3]
    found = {match.test: match for match in text_matches(test, train)}
    assert sorted(found) == list(range(31))
    assert all(found[i].train == 50 + i and not found[i].exact for i in range(30))
    assert found[30] == Match(30, 3, True, 0.0)
    # Three of 28 shingles changed.
    assert found[15].distance == pytest.approx(1 - 25 / 31, abs=1e-9)


def test_rows_much_closer_than_rows_are_to_each_other_are_found() -> None:
    rng = np.random.default_rng(0)
    train = rng.standard_normal((2000, 6)) * [1, 100, 0.01, 1, 1, 1]
    test = rng.standard_normal((300, 6)) * [1, 100, 0.01, 1, 1, 1]
    test[:20] = train[5:25] + 1e-3 * rng.standard_normal((20, 6)) * [1, 100, 0.01, 1, 1, 1]
    test[20] = train[77]
    found = {match.test: match for match in row_matches(test, train)}
    assert sorted(found) == list(range(21))
    assert all(found[i].train == 5 + i for i in range(20))
    assert found[20] == Match(20, 77, True, 0.0)


def test_rows_of_one_kind_only_and_constant_columns_do_not_break_it() -> None:
    same = np.ones((5, 3))
    assert [match.exact for match in row_matches(same, same)] == [True] * 5
    assert row_matches(same + 1, same) == []
    with pytest.raises(UnsupportedError, match="NaN"):
        row_matches(np.full((1, 3), np.nan), same)
    with pytest.raises(UnsupportedError, match="same d"):
        row_matches(np.ones((1, 2)), same)


def test_exact_matches_name_the_first_place() -> None:
    assert exact_matches(["b", "x", "a"], ["a", "b", "b"]) == {0: 1, 2: 0}
    rows = np.arange(6.0).reshape(3, 2)
    assert exact_matches(rows[1:2], rows) == {0: 1}


def test_only_pictures_that_share_a_band_of_their_hash_are_measured() -> None:
    hashes = perceptual_hash(pictures(2000, 0))
    index = _index(_bands(hashes))
    asked = perceptual_hash(pictures(100, 1))
    counts = [len(_candidates(index, bands, hashes, own)) for bands, own in zip(_bands(asked), asked, strict=True)]
    assert np.mean(counts) < 20
    crowd = np.repeat(hashes[:1], 500)
    crowd[300] ^= np.uint64(1)
    chosen = _candidates(_index(_bands(crowd)), _bands(crowd)[300], crowd, crowd[300])
    assert len(chosen) == 100
    assert chosen[0] == 300
