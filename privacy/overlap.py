"""Records of one set that are, exactly or nearly, in another: train and test sets that share pictures, texts or rows.

Candidates come from an index (hashes, bands of hashes, a tree), so that no set is compared with all of another; each is
then measured, so that an unlucky hash accuses nobody.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.spatial import KDTree

from ..attacks.errors import UnsupportedError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BITS = 64
_BANDS = 4
_MOST_CANDIDATES = 100


@dataclass(frozen=True, slots=True)
class Match:
    """A record of the test set and its nearest in the training set.

    Attributes:
        test, train: positions.
        exact: whether they are the same to the byte.
        distance: 0 for the same, up to the threshold of the search; its unit depends on the kind of record.
    """

    test: int
    train: int
    exact: bool
    distance: float


def fingerprint(record: NDArray[np.generic] | str) -> bytes:
    """A hash of a record's content: equal for equal records only, but for collisions that nobody will see."""
    data = record.encode() if isinstance(record, str) else np.ascontiguousarray(record).tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def exact_matches(
    test: Iterable[NDArray[np.generic] | str], train: Iterable[NDArray[np.generic] | str]
) -> dict[int, int]:
    """For each test record that is in the training set, its first place there."""
    places: dict[bytes, int] = {}
    for place, record in enumerate(train):
        places.setdefault(fingerprint(record), place)
    return {i: places[mark] for i, record in enumerate(test) if (mark := fingerprint(record)) in places}


def image_matches(test: NDArray[np.floating], train: NDArray[np.floating], threshold: float = 0.1) -> list[Match]:
    """Nearest training pictures of test pictures ``(n, c, h, w)`` in 0..1 that are the same or nearly so.

    Pictures whose perceptual hashes (the signs of the low frequencies) share a quarter of their bits are candidates.
    Distance is the root mean square difference after each picture's mean and deviation are taken away: 0 for the same
    up to brightness and contrast, 1.41 for unrelated ones; slight noise and compression stay below 0.1.

    Raises:
        UnsupportedError: when the shapes differ.
    """
    if test.ndim != 4 or test.shape[1:] != train.shape[1:]:
        raise UnsupportedError(f"pictures have shapes {test.shape}, {train.shape}: expected (n, c, h, w), equal sizes")
    hashes, asked = perceptual_hash(train), perceptual_hash(test)
    index = _index(_bands(hashes))
    plain = _standard(train), _standard(test)
    same = exact_matches(test, train)
    found = []
    for i, bands in enumerate(_bands(asked)):
        if i in same:
            found.append(Match(i, same[i], True, 0.0))
            continue
        near = _candidates(index, bands, hashes, asked[i])
        if len(near):
            distances = np.sqrt(((plain[0][near] - plain[1][i]) ** 2).mean(1))
            best = int(distances.argmin())
            if distances[best] <= threshold:
                found.append(Match(i, int(near[best]), False, float(distances[best])))
    return found


def perceptual_hash(pictures: NDArray[np.floating]) -> NDArray[np.uint64]:
    """64 bits ``(n,)``: signs of the lowest frequencies of the grey picture, the mean left out.

    Small pictures have fewer frequencies, and repeat them.
    """
    grey = pictures.mean(1)
    side = min(9, *grey.shape[1:])
    low = np.asarray(dctn(grey, axes=(1, 2), norm="ortho"))[:, :side, :side].reshape(len(grey), -1)[:, 1:]
    bits = np.take(low, np.arange(_BITS) % low.shape[1], 1) > 0
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def text_matches(
    test: Sequence[str], train: Sequence[str], threshold: float = 0.3, shingle: int = 3, seed: int = 0
) -> list[Match]:
    """Nearest training texts that are the same or nearly so, by shingles of ``shingle`` words.

    MinHash (Broder, 1997) in 32 bands of 4 finds candidates; distance is 1 - Jaccard similarity of the shingle sets,
    over words in small letters without punctuation.
    """
    sets = [_shingles(text, shingle) for text in train]
    index: dict[tuple[int, int], list[int]] = defaultdict(list)
    hashing = _MinHash(seed)
    for place, shingles in enumerate(sets):
        for key in hashing.bands(shingles):
            index[key].append(place)
    same = exact_matches(test, train)
    found = []
    for i, text in enumerate(test):
        if i in same:
            found.append(Match(i, same[i], True, 0.0))
            continue
        shingles = _shingles(text, shingle)
        near = {place for key in hashing.bands(shingles) for place in index.get(key, ())[:_MOST_CANDIDATES]}
        best = min(((1 - _jaccard(shingles, sets[place]), place) for place in near), default=(2.0, 0))
        if best[0] <= threshold:
            found.append(Match(i, best[1], False, best[0]))
    return found


def row_matches(test: Floats, train: Floats, threshold: float = 0.05) -> list[Match]:
    """Nearest training rows ``(n, d)`` that are the same or nearly so.

    Columns are scaled by their deviation in the training set. Distance is that to the nearest training row, divided by
    the median distance of training rows to their nearest neighbour: far below 1, a row is much closer than rows of
    these data are to each other.

    Raises:
        UnsupportedError: when the numbers of columns differ or some values are not finite.
    """
    if test.ndim != 2 or train.ndim != 2 or test.shape[1] != train.shape[1]:
        raise UnsupportedError(f"rows have shapes {test.shape} and {train.shape}: expected (n, d) with the same d")
    if not (np.isfinite(test).all() and np.isfinite(train).all()):
        raise UnsupportedError("some values are NaN or infinite: fill them in first")
    spread = train.std(0)
    scaled = [rows / np.where(spread > 0, spread, 1.0) for rows in (test, train)]
    tree = KDTree(scaled[1])
    usual = _usual_distance(tree, scaled[1])
    distances, places = (np.asarray(found) for found in tree.query(scaled[0]))
    same = exact_matches(test, train)
    found = []
    for i, (distance, place) in enumerate(zip(distances / usual, places, strict=True)):
        if i in same:
            found.append(Match(i, same[i], True, 0.0))
        elif distance <= threshold:
            found.append(Match(i, int(place), False, float(distance)))
    return found


def _usual_distance(tree: KDTree, rows: Floats, most: int = 2000) -> float:
    """Median distance of distinct training rows to the nearest other; 1 where all are the same."""
    some = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
    distances = np.asarray(tree.query(some, k=2)[0])[:, 1] if len(rows) > 1 else np.zeros(1)
    apart = distances[distances > 0]
    return float(np.median(apart)) if len(apart) else 1.0


def _standard(pictures: NDArray[np.floating]) -> NDArray[np.float32]:
    """Flat ``(n, d)`` with mean 0 and deviation 1 each; an even picture is 0."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    centred = flat - flat.mean(1, keepdims=True)
    return centred / np.maximum(centred.std(1, keepdims=True), 1e-4)


def _bands(hashes: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Each hash ``(n,)`` in four parts ``(n, 4)``: two that differ in at most three bits share one of them."""
    return hashes.view(np.uint16).reshape(len(hashes), _BANDS)


def _index(bands: NDArray[np.uint16]) -> dict[tuple[int, int], Ints]:
    """The places of each value of each band."""
    index: dict[tuple[int, int], Ints] = {}
    for band in range(bands.shape[1]):
        order = np.argsort(bands[:, band], kind="stable")
        values, starts = np.unique(bands[order, band], return_index=True)
        for value, places in zip(values, np.split(order, starts[1:]), strict=True):
            index[band, int(value)] = places
    return index


def _candidates(
    index: dict[tuple[int, int], Ints], bands: NDArray[np.uint16], hashes: NDArray[np.uint64], own: np.uint64
) -> Ints:
    """Places that share a band; where there are very many, those whose whole hash is nearest."""
    shared = [index[key] for key in enumerate(bands.tolist()) if key in index]
    near = np.unique(np.concatenate(shared)) if shared else np.empty(0, np.int64)
    if len(near) > _MOST_CANDIDATES:
        near = near[np.argsort(np.bitwise_count(hashes[near] ^ own), kind="stable")[:_MOST_CANDIDATES]]
    return near


def _shingles(text: str, size: int) -> frozenset[int]:
    words = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    parts = [" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))]
    return frozenset(int.from_bytes(hashlib.blake2b(part.encode(), digest_size=4).digest(), "big") for part in parts)


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / max(1, len(a | b))


class _MinHash:
    """128 random linear hashes modulo a Mersenne prime, in 32 bands of 4."""

    _PRIME = (1 << 31) - 1

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.factor = rng.integers(1, self._PRIME, (128, 1), dtype=np.int64)
        self.offset = rng.integers(0, self._PRIME, (128, 1), dtype=np.int64)

    def bands(self, shingles: frozenset[int]) -> Iterator[tuple[int, int]]:
        values = np.fromiter(shingles, np.int64, len(shingles)) % self._PRIME
        least = ((self.factor * values + self.offset) % self._PRIME).min(1)
        for band, part in enumerate(least.reshape(32, 4)):
            yield band, hash(tuple(part.tolist()))
