"""Accuracy in parts of the data: by length of the text, and by columns of the user's table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ...attacks.statistics import rate_interval
from ...attacks.text.passage import Passage
from ...reports.record import Chart, Figure, Finding, Line, Metric, Result, Table
from .. import registry
from ..errors import SpecError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .metrics import percent, rate
from .outputs import all_logits, same_predictions
from .text_inputs import Texts

_MOST_VALUES = 12
"""Of a column: the most frequent values are slices of their own, the rest are one; numbers are cut into quarters."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the data: ``column = value``, samples as a mask ``(n,)``."""

    column: str
    value: str
    mask: NDArray[np.bool_]

    @property
    def name(self) -> str:
        return f"{self.column}: {self.value}"


class Slices(Check):
    """Accuracy in each quarter of the lengths, and for each value of the columns named.

    Intervals are widened so that all of them together hold with 95 % (Bonferroni): the worst of many slices looks bad
    by chance alone.
    """

    name: ClassVar[str] = "slices"
    title: ClassVar[str] = "Slices of the data"
    question: ClassVar[str] = "How often is the model right, on which classes is it not, and is its confidence honest?"
    requires: ClassVar[frozenset[Access]] = frozenset({"labels"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    references: ClassVar[tuple[str, ...]] = (
        "Chung et al., Slice Finder: Automated Data Slicing for Model Validation, arXiv 1807.06068",
    )
    standards: ClassVar[tuple[str, ...]] = standards.ACCURACY
    metrics: ClassVar[Mapping[str, str]] = {
        "worst_slice_accuracy": "Accuracy of the slice of at least `smallest` samples where it is lowest.",
        "slice_gap": "Accuracy outside of that slice minus accuracy in it.",
    }
    cost: ClassVar[str] = "one forward pass per sample"

    columns: tuple[str, ...] = Field(default=(), description="Columns of the table; numbers are cut into quarters.")
    length: bool = Field(default=True, description="Slice by the number of words too.")
    smallest: int = Field(default=20, ge=1, description="Smaller slices are shown but do not count as the worst.")

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        context.progress.start(self.title, len(samples))
        slices = self._slices(target, samples)
        logits = all_logits(target, samples, context.batch_size, context.progress)
        right = (logits.argmax(1).numpy() == samples.labels).astype(bool)
        tensors = {
            "ids": torch.from_numpy(samples.ids),
            "labels": torch.from_numpy(samples.labels),
            "logits": logits,
        }
        worst = self._worst(slices, right)
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(worst, right),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=tuple(self._metrics(slices, right)),
            findings=tuple(_findings(slices, right)),
            figures=tuple(_figures(slices, right)),
            evidence=(context.evidence("scores", tensors),),
            warnings=() if worst else (f"No slice has {self.smallest} samples: the worst slice is undefined.",),
            not_covered=("Slices by what no column says, and by several columns at once.",),
            references=self.references,
            standards=self.standards,
            forwards=len(samples),
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        recorded = context.read_evidence(result.evidence[0])
        same = np.array_equal(recorded["ids"].numpy(), samples.ids) and np.array_equal(
            recorded["labels"].numpy(), samples.labels
        )
        yield Claim("the scores belong to the audited samples and labels", same)
        if not same:
            return
        agree = same_predictions(all_logits(target, samples, context.batch_size), recorded["logits"])
        yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)} samples")
        right = (recorded["logits"].argmax(1).numpy() == samples.labels).astype(bool)
        again = {metric.name: metric for metric in self._metrics(self._slices(target, samples), right)}
        for metric in result.metrics:
            other = again.get(metric.name)
            yield Claim(
                f"{metric.name} follows from the recorded scores", other is not None and other.value == metric.value
            )

    def _slices(self, target: Target, samples: Samples) -> list[Slice]:
        found: list[Slice] = []
        if self.length:
            texts = Texts.of(target, samples, None)
            words = np.array([len(Passage.of(texts.text(row))) for row in range(len(texts))])
            found += _of_numbers("words", words)
        for column in self.columns:
            if column not in samples.columns:
                raise SpecError(registry.unknown("column", column, samples.columns))
            found += _of_column(column, samples.columns[column])
        return found

    def _worst(self, slices: list[Slice], right: NDArray[np.bool_]) -> Slice | None:
        large = [one for one in slices if self.smallest <= one.mask.sum() < len(right)]
        return min(large, key=lambda one: float(right[one.mask].mean()), default=None)

    def _metrics(self, slices: list[Slice], right: NDArray[np.bool_]) -> Iterator[Metric]:
        worst = self._worst(slices, right)
        mask = np.zeros(len(right), dtype=bool) if worst is None else worst.mask
        name = "" if worst is None else f" ({worst.name})"
        hits, n = int(right[mask].sum()), int(mask.sum())
        yield rate("worst_slice_accuracy", hits, n, label=f"Accuracy of the worst slice{name}", higher_is_better=True)
        gap = None if worst is None else float(right[~mask].mean() - right[mask].mean())
        interval = (None, None) if gap is None else _difference(right[~mask], right[mask])
        yield Metric(
            name="slice_gap",
            value=gap,
            ci_low=interval[0],
            ci_high=interval[1],
            n=len(right) if gap is not None else 0,
            unit="",
            higher_is_better=False,
            label="Accuracy elsewhere minus accuracy in the worst slice",
            method="newcombe" if gap is not None else "",
        )


def _difference(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of the difference of two shares from their Wilson intervals (Newcombe, 1998)."""
    p, q = float(a.mean()), float(b.mean())
    (low_a, high_a), (low_b, high_b) = (rate_interval(int(x.sum()), len(x)) for x in (a, b))
    low = p - q - float(np.hypot(p - low_a, high_b - q))
    return low, p - q + float(np.hypot(high_a - p, q - low_b))


def _of_column(column: str, values: NDArray[np.generic]) -> list[Slice]:
    distinct = np.unique(values)
    if np.issubdtype(values.dtype, np.number) and len(distinct) > _MOST_VALUES:
        return _of_numbers(column, values)
    texts = np.array([str(value) for value in values], dtype=object)
    names, counts = np.unique(texts.astype("U"), return_counts=True)
    common = [str(name) for name in names[np.argsort(-counts, kind="stable")][:_MOST_VALUES]]
    found = [Slice(column, name or "(empty)", np.asarray(texts == name)) for name in common]
    rest = ~np.isin(texts.astype("U"), common)
    return [*found, Slice(column, "others", rest)] if rest.any() else found


def _of_numbers(column: str, values: NDArray[np.generic]) -> list[Slice]:
    """Quarters of the values; fewer where many are equal."""
    numbers = values.astype(np.float64)
    edges = np.unique(np.quantile(numbers, (0.25, 0.5, 0.75, 1.0), method="lower"))
    found, low = [], -np.inf
    for edge in edges:
        mask = (numbers > low) & (numbers <= edge)
        start = numbers[mask].min()
        found.append(Slice(column, f"{start:.4g} to {edge:.4g}", mask))
        low = edge
    return found


def _summary(worst: Slice | None, right: NDArray[np.bool_]) -> str:
    if worst is None:
        return (
            f"The model is right on {percent(float(right.mean()))} of {len(right)} samples; no slice is large enough."
        )
    inside = right[worst.mask]
    return (
        f"The model is right on {percent(float(right.mean()))} of {len(right)} samples; least often where "
        f"{worst.name}: {percent(float(inside.mean()))} of {len(inside)}."
    )


def _ends(one: Slice, right: NDArray[np.bool_], count: int) -> tuple[int, int, float, float]:
    """Hits, size, and an interval that holds for all ``count`` slices together."""
    hits, n = int(right[one.mask].sum()), int(one.mask.sum())
    low, high = rate_interval(hits, n, confidence=1 - 0.05 / max(count, 1))
    return hits, n, low, high


def _findings(slices: list[Slice], right: NDArray[np.bool_]) -> Iterator[Finding]:
    overall = float(right.mean())
    for one in slices:
        hits, n, _, high = _ends(one, right, len(slices))
        if high < overall:
            yield Finding(
                severity="high" if high < overall - 0.1 else "medium",
                title=f"Accuracy is lower where {one.name}",
                detail=f"{percent(hits / n)} of {n} samples, overall {percent(overall)}; also after allowing for the "
                f"number of slices examined, at most {percent(high)}.",
                remedy="Collect more samples of this kind, or state the limit where the model is used.",
                standards=standards.ACCURACY,
            )


def _figures(slices: list[Slice], right: NDArray[np.bool_]) -> Iterator[Figure]:
    if not slices:
        return
    ends = [_ends(one, right, len(slices)) for one in slices]
    yield Chart(
        id="slices",
        title="Accuracy by slice",
        caption="Bars: intervals that hold for all slices together with 95 %.",
        style="bar",
        x_label="slice",
        y_label="accuracy",
        y_range=(0, 1),
        categories=tuple(one.name for one in slices),
        lines=(
            Line(
                name="accuracy",
                x=tuple(float(i) for i in range(len(slices))),
                y=tuple(hits / n for hits, n, _, _ in ends),
                low=tuple(low for _, _, low, _ in ends),
                high=tuple(high for _, _, _, high in ends),
            ),
        ),
    )
    rows = tuple(
        (one.name, n, hits, hits / n, low, high) for one, (hits, n, low, high) in zip(slices, ends, strict=True)
    )
    columns = ("slice", "samples", "right", "accuracy", "low", "high")
    yield Table(id="table", title="Accuracy by slice", columns=columns, rows=rows)
