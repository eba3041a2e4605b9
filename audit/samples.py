"""Raw inputs with labels and stable ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Inputs(Protocol):
    """Raw inputs by position: ``inputs[indices]`` gives an array of images ``(b, h, w[, c])``, rows ``(b, d)``, or
    texts (object ``(b,)`` of strings, ``(b, 2)`` for pairs).

    An in-memory or memory-mapped array satisfies it; an image folder reads only the files asked for.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: NDArray[np.int64], /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw inputs (before any preprocessing, which belongs to the target), labels, ids.

    Attributes:
        inputs: images uint8 0..255 or float 0..1, shape ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; texts as
            objects ``(n,)``, or ``(n, 2)`` for pairs.
        labels: int64 ``(n,)``, 0..k-1.
        ids: int64 ``(n,)``, stable under selection and order: random streams are keyed by them.
        names: what a person reads for each sample (file name or row number).
        classes: names of the k classes.
        source: path or factory, as the spec gives it.
        sha256: hash of the data in full (before ``limit``), so that evidence can be tied to it.
        columns: what else is known of each sample, ``(n,)`` by name: the other columns of a table.
    """

    inputs: Inputs
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    names: Sequence[str]
    classes: tuple[str, ...]
    source: str
    sha256: str
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: NDArray[np.int64]) -> Samples:
        """The samples at these positions, ids kept."""
        return replace(
            self,
            inputs=Subset(self.inputs, index),
            labels=self.labels[index],
            ids=self.ids[index],
            names=[self.names[i] for i in index],
            columns={name: values[index] for name, values in self.columns.items()},
        )

    def batches(self, size: int) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        """Raw inputs and labels, ``size`` at a time."""
        for start in range(0, len(self), size):
            index = np.arange(start, min(start + size, len(self)))
            yield self.inputs[index], self.labels[index]


@dataclass(frozen=True, slots=True)
class Subset:
    """Inputs at some positions of others."""

    inputs: Inputs
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: NDArray[np.int64], /) -> Any:
        return self.inputs[self.index[index]]
