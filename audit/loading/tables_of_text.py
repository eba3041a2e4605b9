"""Reads tables with a column of texts: csv, tsv, jsonl, parquet, and folders written by Hugging Face ``datasets``."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingExtraError
from ..spec_problems import suggestion
from .files import read_bytes, sha256

TEXT_COLUMNS = ("text", "sentence", "review", "content", "document", "comment", "question")
PAIR_COLUMNS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
)
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "sentiment", "y")

_MAX_BYTES = 4 * 2**30
_LONGEST_CELL = 100_000_000


@dataclass(frozen=True, slots=True)
class TextTable:
    """What a table of texts holds.

    Attributes:
        texts: object ``(n,)`` of strings, or ``(n, 2)`` for pairs.
        labels: int64 ``(n,)``.
        classes: names of the classes where labels are names, else empty.
        columns: the other columns, by name, each ``(n,)``.
        sha256: hash of the file or folder.
    """

    texts: NDArray[np.object_]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    columns: Mapping[str, NDArray[Any]]
    sha256: str


def read_text_table(
    path: Path, text: str | Sequence[str] | None, label: str | None, named: tuple[str, ...] | None
) -> TextTable:
    """Reads the file or folder by its content.

    Args:
        text: the column of the texts, or two columns for pairs; found by common names when None.
        label: the column of the labels; found by common names when None.
        named: names of the classes in order, which labels that are names are matched with.

    Raises:
        DataError: when it cannot be read, a column is missing, or a text or label is.
        MissingExtraError: for parquet and ``datasets`` folders without pyarrow.
    """
    table, classes, digest = _columns_of(path)
    if not table or not len(next(iter(table.values()))):
        raise DataError(f"{path}: no samples")
    fields = _text_columns(table, text, path)
    label = _label_column(table, label, path)
    texts = np.empty((len(table[label]), len(fields)), dtype=object)
    for place, name in enumerate(fields):
        texts[:, place] = [_text(value, row, name, path) for row, value in enumerate(table[name])]
    labels, classes = class_numbers(table[label], named or classes.get(label, ()), f"{path}, column {label}")
    rest = {name: _array(values) for name, values in table.items() if name not in (*fields, label)}
    return TextTable(texts[:, 0] if len(fields) == 1 else texts, labels, classes, rest, digest)


def class_numbers(
    values: Sequence[Any], named: tuple[str, ...], place: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as class numbers: whole numbers stay, names are looked up (in sorted order when none are given).

    Raises:
        DataError: for a missing label, a fraction, or a name that is no class.
    """
    for row, value in enumerate(values):
        if value is None or value == "" or (isinstance(value, float) and value != value):
            raise DataError(f"{place}: row {row + 1} has no label")
    if not set(named) & {str(value) for value in values}:
        try:
            whole = [int(value) if isinstance(value, str) else value for value in values]
        except ValueError:
            whole = None
        if whole is not None:
            if any(isinstance(value, float) and not value.is_integer() for value in whole):
                raise DataError(f"{place}: labels are fractions; give class numbers 0..k-1 or names")
            return np.array([int(value) for value in whole], dtype=np.int64), ()
    texts = [str(value) for value in values]
    classes = named or tuple(sorted(set(texts)))
    numbers = {name: c for c, name in enumerate(classes)}
    for row, name in enumerate(texts):
        if name not in numbers:
            raise DataError(
                f"{place}: row {row + 1} has label {name!r}, which is no class. {suggestion(name, classes)}"
            )
    return np.array([numbers[name] for name in texts], dtype=np.int64), classes


_Table = dict[str, Sequence[Any]]
_ClassNames = dict[str, tuple[str, ...]]


def _columns_of(path: Path) -> tuple[_Table, _ClassNames, str]:
    """Columns by name, names of classes where the file knows them, hash."""
    if path.is_dir():
        return _from_datasets(path)
    content = read_bytes(path, DataError, _MAX_BYTES)
    if content[:4] == b"PAR1":
        return *_from_parquet(content, path), sha256(content)
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is neither parquet nor UTF-8 text (byte {error.start}); save the table as UTF-8"
        ) from error
    table = _from_lines(decoded, path) if decoded.lstrip()[:1] in "{[" else _from_delimited(decoded, path)
    return table, {}, sha256(content)


def _from_delimited(content: str, path: Path) -> _Table:
    header = content.partition("\n")[0]
    delimiter = next((mark for mark in "\t,;" if mark in header), ",")
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        rows = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
    finally:
        csv.field_size_limit(before)
    names, body = rows[0], [row for row in rows[1:] if row]
    for number, row in enumerate(body, 2):
        if len(row) != len(names):
            raise DataError(f"{path}: record {number} has {len(row)} fields, the header has {len(names)}")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have the same name: {', '.join(names[:20])}")
    return {name: [row[place] for row in body] for place, name in enumerate(names)}


def _from_lines(content: str, path: Path) -> _Table:
    """JSON lines, or one JSON list of objects."""
    try:
        if content.lstrip().startswith("["):
            rows = json.loads(content)
        else:
            rows = [json.loads(line) for line in content.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON lines ({error})") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: each line must be an object such as {{"text": …, "label": …}}')
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _from_parquet(content: bytes, path: Path) -> tuple[_Table, _ClassNames]:
    _require_arrow()
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
    except Exception as error:  # pyarrow raises many kinds on damaged files
        raise DataError(f"{path}: cannot be read as parquet ({type(error).__name__}: {error})") from error
    return table.to_pydict(), _names_in_metadata(table.schema.metadata)


def _from_datasets(path: Path) -> tuple[_Table, _ClassNames, str]:
    """A folder of ``Dataset.save_to_disk``: Arrow streams listed in ``state.json``."""
    state = path / "state.json"
    if not state.is_file():
        inside = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        hint = f"; it holds the splits {', '.join(inside)}: name one, such as {path / inside[0]}" if inside else ""
        raise DataError(f"{path}: no folder of a Hugging Face data set on disk (no state.json){hint}")
    _require_arrow()
    import pyarrow

    digest, tables = hashlib.sha256(), []
    try:
        files = [str(entry["filename"]) for entry in json.loads(state.read_bytes())["_data_files"]]
        for name in files:
            if Path(name).name != name:
                raise DataError(f"{path}: state.json names a file outside the folder: {name}")
            content = read_bytes(path / name, DataError, _MAX_BYTES)
            digest.update(content)
            tables.append(pyarrow.ipc.open_stream(io.BytesIO(content)).read_all())
        table = pyarrow.concat_tables(tables)
    except DataError:
        raise
    except Exception as error:  # pyarrow and json raise many kinds on damaged files
        raise DataError(f"{path}: cannot be read as a data set on disk ({type(error).__name__}: {error})") from error
    names = _names_in_metadata(table.schema.metadata)
    return table.to_pydict(), names or _names_in_info(path / "dataset_info.json"), digest.hexdigest()


def _names_in_metadata(metadata: Mapping[bytes, bytes] | None) -> _ClassNames:
    """Names of the classes that ``datasets`` stores in an Arrow schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return _class_names(features)


def _names_in_info(path: Path) -> _ClassNames:
    try:
        return _class_names(json.loads(path.read_bytes())["features"])
    except (OSError, KeyError, ValueError, TypeError):
        return {}


def _class_names(features: Any) -> _ClassNames:
    named = features.items() if isinstance(features, dict) else ()
    return {
        name: tuple(map(str, kind["names"])) for name, kind in named if isinstance(kind, dict) and kind.get("names")
    }


def _require_arrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("reading parquet and Hugging Face data sets", "text") from error


def _text_columns(table: _Table, wanted: str | Sequence[str] | None, path: Path) -> tuple[str, ...]:
    if wanted is not None:
        chosen = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        for name in chosen:
            if name not in table:
                raise DataError(f"{path}: no column {name!r} (data.text). {suggestion(name, list(table))}")
        return chosen
    for pair in PAIR_COLUMNS:
        if all(name in table for name in pair):
            return pair
    for name in TEXT_COLUMNS:
        if name in table:
            return (name,)
    raise DataError(f"{path}: which column holds the texts? Name it in data.text. Columns: {_listed(table)}")


def _label_column(table: _Table, wanted: str | None, path: Path) -> str:
    if wanted is not None:
        if wanted not in table:
            raise DataError(f"{path}: no column {wanted!r} (data.label). {suggestion(wanted, list(table))}")
        return wanted
    for name in LABEL_COLUMNS:
        if name in table:
            return name
    raise DataError(f"{path}: which column holds the labels? Name it in data.label. Columns: {_listed(table)}")


def _listed(table: _Table) -> str:
    return ", ".join(list(table)[:20])


def _text(value: Any, row: int, column: str, path: Path) -> str:
    if not isinstance(value, str):
        kind = "is missing" if value is None else f"is {type(value).__name__}, not a text"
        raise DataError(f"{path}: row {row + 1}: {column} {kind}")
    return valid_text(value, f"{path}: row {row + 1}, {column}")


def text_array(values: Any, place: str) -> NDArray[np.object_]:
    """Texts ``(n,)``, or pairs of texts ``(n, 2)``, that a factory returned.

    Raises:
        DataError: when they are no texts.
    """
    rows = [value if isinstance(value, str) else tuple(value) for value in values]
    width = 1 if all(isinstance(row, str) for row in rows) else 2
    texts = np.empty((len(rows), width), dtype=object)
    for i, row in enumerate(rows):
        parts = (row,) if isinstance(row, str) else row
        if len(parts) != width or not all(isinstance(part, str) for part in parts):
            raise DataError(f"{place}: input {i} is neither a text nor a pair of texts like the others")
        texts[i] = [valid_text(part, f"{place}: input {i}") for part in parts]
    return texts[:, 0] if width == 1 else texts


def valid_text(value: str, place: str) -> str:
    """The text, if it is one.

    Raises:
        DataError: when it holds half of a surrogate pair, which no encoding has and no tokenizer takes.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: half of a surrogate pair at character {error.start}; repair the text") from error
    return value


def _array(values: Sequence[Any]) -> NDArray[Any]:
    """A column as numbers where all of its cells are, else as text; gaps are empty texts."""
    numbers = list(_numbers(values))
    if len(numbers) == len(values):
        return np.array(numbers)
    return np.array(["" if value is None else str(value) for value in values], dtype=object)


def _numbers(values: Sequence[Any]) -> Iterator[float]:
    for value in values:
        try:
            yield float(value)
        except (TypeError, ValueError):
            return
