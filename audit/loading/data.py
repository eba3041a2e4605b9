"""From the spec's ``data`` section, or a further source, to samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..samples import Inputs, Samples
from ..spec import Spec
from .arrays import read_arrays
from .huggingface import class_names, is_huggingface
from .images import ImageFolder, read_folder
from .python_factory import load_factory
from .tables_of_text import read_text_table, text_array
from .validate import check_inputs, check_labels


@dataclass(frozen=True, slots=True)
class Loaded:
    """Data as a reader gives it, before validation.

    ``classes`` is empty where the source does not name them; ``names`` where row numbers serve.
    """

    inputs: Inputs
    labels: Any
    sha256: str
    classes: tuple[str, ...] = ()
    names: Sequence[str] = ()
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def load_samples(spec: Spec, source: str | None = None, classes: tuple[str, ...] | None = None) -> Samples:
    """The samples of ``data``, or of a further ``source`` read the same way (without ``limit``).

    Args:
        source: a path relative to the spec, or ``file.py:callable``; ``data`` when None.
        classes: names of the classes where they are known (those of the target).

    Raises:
        DataError: when the data is missing, empty, or has shapes, labels or values that no model can take.
    """
    named = classes or spec.data.classes or spec.model.classes or _classes_of_model(spec)
    place = source or spec.data.source or spec.data.factory or ""
    samples = _validated(_read(spec, source, named), spec, place, named)
    return samples if source is not None or spec.data.limit is None else subset(samples, spec.data.limit, spec.seed)


def subset(samples: Samples, limit: int, seed: int) -> Samples:
    """A random subset of ``limit`` samples in their original order; ids stay positions in the full data."""
    if limit >= len(samples):
        return samples
    chosen = np.random.default_rng(seed).permutation(len(samples))[:limit]
    return samples.select(np.sort(chosen).astype(np.int64))


def digits(k: int) -> tuple[str, ...]:
    """Names of k classes that nobody named: ``("0", "1", …)``."""
    return tuple(str(i) for i in range(k))


def _classes_of_model(spec: Spec) -> tuple[str, ...] | None:
    """Names that a Hugging Face folder gives its classes: labels that are names must be numbered as the model does."""
    if spec.model.modality != "text" or spec.model.source is None:
        return None
    path = spec.resolve(spec.model.source)
    return (class_names(path) or None) if is_huggingface(path) else None


def _read(spec: Spec, source: str | None, named: tuple[str, ...] | None) -> Loaded | Samples:
    if source is None and spec.data.factory is not None:
        return _from_factory(spec.data.factory, spec.data.arguments, spec)
    path = source or spec.data.source or ""
    if ".py:" in path:
        return _from_factory(path, {}, spec)
    return _from_path(spec.resolve(path), spec, named)


def _from_path(path: Path, spec: Spec, named: tuple[str, ...] | None) -> Loaded:
    if spec.model.modality == "text":
        table = read_text_table(path, spec.data.text, spec.data.label, named)
        return Loaded(table.texts, table.labels, table.sha256, table.classes, columns=table.columns)
    if path.is_dir() and not any(path.glob("*.npy")):
        try:
            folder = read_folder(path, spec.model.preprocessing.size, named)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        return Loaded(folder.images, folder.labels, folder.sha256, folder.classes, folder.images.names)
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    arrays = read_arrays(path)
    return Loaded(arrays.inputs, arrays.labels, arrays.sha256, arrays.classes)


def _from_factory(name: str, arguments: dict[str, Any], spec: Spec) -> Loaded | Samples:
    result = load_factory(name, spec.base_dir, DataError)(arguments)
    if isinstance(result, Samples):
        return result
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise DataError(f"{name} returned {type(result).__name__}; it must return (inputs, labels) or Samples")
    texts = spec.model.modality == "text"
    inputs, labels = (text_array(result[0], name) if texts else np.asarray(result[0])), np.asarray(result[1])
    digest = hashlib.sha256()
    for array in (inputs, labels):
        digest.update(f"{array.dtype}{array.shape}".encode())
        # Objects would be hashed by their addresses.
        plain = array.astype("U") if array.dtype == object else array
        digest.update(np.ascontiguousarray(plain).tobytes())
    return Loaded(inputs, labels, digest.hexdigest())


def _validated(loaded: Loaded | Samples, spec: Spec, place: str, named: tuple[str, ...] | None) -> Samples:
    labels = check_labels(loaded.labels, len(loaded.inputs), place)
    if not isinstance(loaded.inputs, ImageFolder) and spec.model.modality != "text":
        check_inputs(loaded.inputs, spec.model.modality, spec.data.layout, place)
    classes = named or loaded.classes or digits(max(int(labels.max()) + 1, 2))
    if labels.max() >= len(classes):
        raise DataError(
            f"{place}: a label is {labels.max()}, but {len(classes)} classes are named (0..{len(classes) - 1})"
        )
    if isinstance(loaded, Samples):
        _check_ids(loaded, place)
        return replace(loaded, labels=labels, classes=classes)
    names = loaded.names or Rows(len(labels))
    return Samples(loaded.inputs, labels, np.arange(len(labels)), names, classes, place, loaded.sha256, loaded.columns)


def _check_ids(samples: Samples, place: str) -> None:
    if not len(samples.ids) == len(samples.names) == len(samples.labels):
        raise DataError(f"{place}: {len(samples.labels)} labels, {len(samples.ids)} ids, {len(samples.names)} names")
    if len(np.unique(samples.ids)) < len(samples.ids):
        raise DataError(f"{place}: two samples have the same id")


@dataclass(frozen=True, slots=True)
class Rows(Sequence[str]):
    """The names of samples that have none: their row numbers."""

    n: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Any) -> Any:
        return [str(i) for i in range(self.n)[index]] if isinstance(index, slice) else str(range(self.n)[index])
