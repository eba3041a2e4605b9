"""The number that a gate's condition is about: a metric, a metric of one class, or the difference of two metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..attacks.statistics import rate_interval, sum_interval
from ..reports.record import Metric, Result, VariantRecord
from .gate_language import OWN, Address, Clause
from .outcomes import Outcomes, aligned, class_values, outcomes
from .paired import paired_change, paired_mean_interval
from .registry import unknown


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its 95 % interval; ``value`` is None when there is none, for the reason in ``problem``.

    Attributes:
        exact: the interval is Clopper-Pearson's of ``n`` samples.
        note: how it was made, where that is not plain.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    exact: bool = False
    note: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Ground:
    """What gates are judged on: the results, and their evidence where ``directory`` is given."""

    variants: tuple[VariantRecord, ...]
    directory: Path | None = None
    classes: tuple[str, ...] = ()
    _read: dict[tuple[str, str], dict[str, Outcomes]] = field(default_factory=dict, compare=False)

    def quantity(self, clause: Clause) -> Quantity:
        """The number that is held against the clause's threshold."""
        subject = self._metric(clause.subject)
        if clause.reference is None or subject.value is None:
            return subject
        reference = self._metric(clause.reference)
        if reference.value is None:
            return replace(reference, problem=f"{clause.reference}: {reference.problem}")
        return self._paired(clause, subject) or _difference(clause, subject, reference)

    def _paired(self, clause: Clause, subject: Quantity) -> Quantity | None:
        """The difference sample by sample, where both metrics were measured on the same ones."""
        assert clause.reference is not None
        left, right = self._outcomes(clause.subject), self._outcomes(clause.reference)
        pair = aligned(left, right) if left is not None and right is not None else None
        if pair is None:
            return None
        if clause.factor == 1:
            found = paired_change(pair[1], pair[0])
            value, low, high = found.difference, found.low, found.high
        else:
            differences = pair[0] - clause.factor * pair[1]
            value, (low, high) = float(differences.mean()), paired_mean_interval(differences)
        note = f"{_named(clause)} on the same {len(pair[0]):,} samples"
        known = not math.isnan(low)
        return Quantity(value, low if known else None, high if known else None, len(pair[0]), subject.unit, note=note)

    def _outcomes(self, address: Address) -> Outcomes | None:
        result = self._result(address)
        if self.directory is None or result is None or address.label is not None:
            return None
        key = address.on, address.check
        if key not in self._read:
            self._read[key] = outcomes(result, self.directory)
        return self._read[key].get(address.metric)

    def _metric(self, address: Address) -> Quantity:
        variant = next((variant for variant in self.variants if variant.id == address.on), None)
        if variant is None:
            return _missing(unknown("variant", address.on, [variant.id for variant in self.variants]))
        if variant.status != "ok":
            return _missing(f"the variant {variant.id!r} could not be built: {variant.error}")
        result = variant.result(address.check)
        if result is None and address.check == OWN:
            return _of(variant.metrics, variant.warnings, address, f"metric of the variant {variant.id!r}:")
        if result is None:
            return _missing(self._not_run(address, variant))
        if result.status != "ok":
            word = "did not finish" if result.status == "error" else "was skipped"
            return _missing(f"the check {result.id!r} {word}: {result.error}")
        if address.label is not None:
            return self._of_class(result, address, address.label)
        return _of(result.metrics, result.warnings, address, f"metric of {result.id!r}:")

    def _of_class(self, result: Result, address: Address, label: str) -> Quantity:
        if label not in self.classes:
            return _missing(unknown("class", label, self.classes))
        if self.directory is None:
            return _missing("a gate on one class needs the evidence of the audit")
        values = class_values(result, self.directory, address.metric, self.classes.index(label))
        if values is None:
            return _missing(f"the evidence of {result.id!r} does not hold {address.metric} sample by sample")
        if not len(values):
            return _missing(f"{address} rests on no sample")
        whole = result.metric(address.metric)
        return _mean(values, whole.unit if whole else "rate")

    def _result(self, address: Address) -> Result | None:
        variant = next((variant for variant in self.variants if variant.id == address.on), None)
        return variant.result(address.check) if variant else None

    def _not_run(self, address: Address, variant: VariantRecord) -> str:
        elsewhere = [other.id for other in self.variants if other.result(address.check) is not None]
        if elsewhere:
            return f"the check {address.check!r} ran on {', '.join(elsewhere)}, not on {variant.id}"
        return unknown("check", address.check, [result.id for result in variant.results])


def _of(metrics: tuple[Metric, ...], warnings: tuple[str, ...], address: Address, what: str) -> Quantity:
    metric = next((metric for metric in metrics if metric.name == address.metric), None)
    if metric is None:
        return _missing(unknown(what, address.metric, [metric.name for metric in metrics]))
    if metric.value is None or math.isnan(metric.value):
        reasons = [warning for warning in warnings if metric.name in warning]
        return replace(_missing("; ".join(["the metric is undefined", *reasons])), n=metric.n, unit=metric.unit)
    return _judged_by(metric, metric.value)


def _judged_by(metric: Metric, value: float) -> Quantity:
    """The metric's own interval; for a rate of counted samples the exact one, whose error is bounded."""
    low, high, n = metric.ci_low, metric.ci_high, metric.n
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return Quantity(value, n=n, unit=metric.unit)
    hits = round(value * n) if n else 0
    counted = n and metric.method in ("wilson", "clopper-pearson") and 0 <= hits <= n and abs(value * n - hits) < 1e-6
    if counted and n:
        low, high = rate_interval(hits, n, method="exact")
    return Quantity(value, low, high, n, metric.unit, exact=bool(counted))


def _mean(values: NDArray[np.float64], unit: str) -> Quantity:
    value, n = float(values.mean()), len(values)
    if np.isin(values, (0, 1)).all():
        low, high = rate_interval(int(values.sum()), n, method="exact")
        return Quantity(value, low, high, n, unit, exact=True)
    low, high = paired_mean_interval(values)
    known = not math.isnan(low)
    return Quantity(value, low if known else None, high if known else None, n, unit)


def _difference(clause: Clause, subject: Quantity, reference: Quantity) -> Quantity:
    """``subject - factor * reference`` as of independent samples: on the same ones, wider than it need be."""
    assert subject.value is not None
    assert reference.value is not None
    value = subject.value - clause.factor * reference.value
    ends = [
        None if q.low is None or q.high is None or not math.isfinite(q.high - q.low) else (q.low, q.high)
        for q in (subject, reference)
    ]
    if ends == [None, None]:
        return Quantity(value, n=subject.n, unit=subject.unit, note=_named(clause))
    values = (subject.value, reference.value)
    intervals = [end or (value, value) for end, value in zip(ends, values, strict=True)]
    low, high = sum_interval((1.0, -clause.factor), values, intervals)
    return Quantity(value, low, high, subject.n, subject.unit, note=f"{_named(clause)}, taken as independent")


def _named(clause: Clause) -> str:
    factor = "" if clause.factor == 1 else f"{clause.factor:.6g} * "
    return f"the value is the difference to {factor}{clause.reference}"


def _missing(problem: str) -> Quantity:
    return Quantity(None, problem=problem)
