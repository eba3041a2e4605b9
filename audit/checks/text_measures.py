"""All metrics of an attack on texts, from which samples were right, which fell, and with which edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...attacks.statistics import bootstrap_sums, percentile_interval, quantile_interval
from ...attacks.text.constraints.edit_distance import edit_distance
from ...attacks.text.passage import Passage
from ...reports.record import Metric
from .metrics import estimate, plain, rate


@dataclass(frozen=True, slots=True)
class TextMeasured:
    """What was found on n texts.

    Attributes:
        y: int64 ``(n,)``, labels.
        correct: bool ``(n,)``, whether the model was right on the original.
        tried: bool ``(n,)``, whether it was attacked: right, and with a target not of that class.
        fallen: bool ``(n,)``, whether the model errs on a version within the constraints.
        changed: int64 ``(n,)``, words edited where it fell.
        words: int64 ``(n,)``, words of the original.
        similarity: float ``(n,)``, one minus edit distance over length, 0..1.
        meaning: float ``(n,)``, cosine of sentence embeddings, or None where no encoder was given.
        queries: int64 ``(n,)``.
    """

    y: NDArray[np.int64]
    correct: NDArray[np.bool_]
    tried: NDArray[np.bool_]
    fallen: NDArray[np.bool_]
    changed: NDArray[np.int64]
    words: NDArray[np.int64]
    similarity: NDArray[np.float64]
    meaning: NDArray[np.float64] | None
    queries: NDArray[np.int64]

    def metrics(self) -> tuple[Metric, ...]:
        return (*self._rates(), *self._sizes(), *self._work())

    def _rates(self) -> Iterator[Metric]:
        n, right, fallen = len(self.y), int(self.correct.sum()), int(self.fallen.sum())
        tried = int(self.tried.sum())
        yield rate("clean_accuracy", right, n, label="Clean accuracy", higher_is_better=True)
        yield rate("robust_accuracy", right - fallen, n, label="Accuracy under attack", higher_is_better=True)
        label = "Attack success among texts classified correctly"
        yield rate("attack_success_rate", fallen, tried, label=label, higher_is_better=False)

    def _sizes(self) -> Iterator[Metric]:
        changed, words = self.changed[self.fallen], self.words[self.fallen]
        yield _mean("words_changed", changed.astype(float), "Words changed in successes", "words")
        yield _mean("share_changed", changed / np.maximum(words, 1), "Share of words changed in successes", "")
        yield _mean("similarity", self.similarity[self.fallen], "Similarity of successes, by characters", "")
        if self.meaning is not None:
            yield _mean("meaning", self.meaning[self.fallen], "Similarity of successes, by sentence encoder", "")

    def _work(self) -> Iterator[Metric]:
        queries = self.queries[self.tried]
        value = float(queries.mean()) if len(queries) else None
        label = "Queries per text attacked"
        yield plain("queries_per_sample", value, len(queries), label=label, unit="queries", higher_is_better=None)
        spent = self.queries[self.fallen].astype(float)
        interval = quantile_interval(spent, 0.5) if len(spent) else (float("nan"), float("nan"))
        yield estimate(
            "median_queries_to_success",
            float(np.median(spent)) if len(spent) else float("nan"),
            interval,
            len(spent),
            label="Median queries of successes",
            higher_is_better=True,
            method="order statistics",
            unit="queries",
        )

    def lengths(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """Groups of texts by length, in quarters: a name and a mask ``(n,)`` each."""
        edges = sorted({int(np.quantile(self.words, q, method="lower")) for q in (0.25, 0.5, 0.75, 1.0)})
        groups, low = [], 0
        for edge in edges:
            mask = (self.words >= low) & (self.words <= edge)
            groups.append((f"{low}–{edge} words", mask))
            low = edge + 1
        return groups


def measured_of(
    y: NDArray[np.int64],
    correct: NDArray[np.bool_],
    tried: NDArray[np.bool_],
    originals: Sequence[str],
    edits: Sequence[dict[int, str]],
    queries: NDArray[np.int64],
    meaning: NDArray[np.float64] | None,
) -> TextMeasured:
    """Measures what the edits amount to; a sample with edits is one that fell."""
    n = len(y)
    changed, words = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    similarity = np.ones(n)
    for row, text in enumerate(originals):
        passage = Passage.of(text)
        words[row] = len(passage)
        if edits[row]:
            edited = passage.with_words(edits[row])
            changed[row] = len(passage.changed(edited))
            longest = max(len(text), len(edited.text), 1)
            similarity[row] = 1 - min(edit_distance(passage, edited) / longest, 1.0)
    fallen = tried & np.array([bool(own) for own in edits], dtype=bool)
    return TextMeasured(y, correct, tried, fallen, changed, words, similarity, meaning, queries)


def _mean(name: str, values: NDArray[np.float64], label: str, unit: str) -> Metric:
    """A mean with its bootstrap interval; undefined without values."""
    n = len(values)
    if n == 0:
        values = np.array([np.nan])
    interval = percentile_interval(bootstrap_sums(values[:, None])[:, 0] / len(values))
    value = float(values.mean())
    return estimate(name, value, interval, n, label=label, higher_is_better=None, method="bootstrap", unit=unit)
