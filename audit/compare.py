"""Two records side by side: what improved, what regressed, what changed within the noise."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.special import ndtr, ndtri

from ..attacks.statistics import sum_interval
from ..reports.differences import Comparison, Difference, GateChange, Kind, Test
from ..reports.record import AuditRecord, Metric, Result
from .changes import holm
from .gates import BASE
from .outcomes import Outcomes, aligned, outcomes
from .paired import Paired, paired_change

ALPHA = 0.05
_CLOCK = ("s", "ms", "µs", "samples/s")
"""Units of times: they depend on the machine, so that a change of them is not for better or worse."""


_ROUNDING = 1e-3
"""Relative change below which a metric without interval counts as not changed: accountants and sums round."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """One metric of one audit, with its per-sample outcomes where the evidence holds them."""

    metric: Metric
    outcomes: Outcomes | None = None


def compare(
    before: AuditRecord,
    after: AuditRecord,
    folders: tuple[Path | None, Path | None] = (None, None),
    alpha: float = ALPHA,
) -> Comparison:
    """Every metric of either record, in the order of the first.

    ``improved`` or ``regressed`` are differences that are beyond chance: their p-value, corrected by Holm's method for
    all metrics that were tested, is below ``alpha``. Metrics that rest on the same samples in both are tested sample
    by sample.

    Args:
        folders: the output folders with the evidence of each; without them all tests rest on intervals.
    """
    paired = before.data.sha256 == after.data.sha256
    old, new = (
        dict(_measured(record, folder if paired else None))
        for record, folder in ((before, folders[0]), (after, folders[1]))
    )
    drafts = [_draft(address, old.get(address), new.get(address)) for address in dict.fromkeys([*old, *new])]
    adjusted = holm({key: test.p for key, one in drafts if (test := one.test) is not None})
    differences = tuple(_judged(one, adjusted.get(key, math.nan), alpha) for key, one in drafts)
    return Comparison(before, after, differences, tuple(_gate_changes(before, after)), alpha)


def _gate_changes(before: AuditRecord, after: AuditRecord) -> Iterator[GateChange]:
    old = {(gate.expression, gate.variant): gate.verdict for gate in before.gates}
    for gate in after.gates:
        was = old.get((gate.expression, gate.variant), gate.verdict)
        if was != gate.verdict:
            yield GateChange(gate.expression, was, gate.verdict)


def _measured(record: AuditRecord, folder: Path | None) -> Iterator[tuple[str, _Measured]]:
    for variant in record.variants:
        prefix = "" if variant.id == BASE else f"{variant.id}:"
        yield from ((f"{variant.id}:variant.{metric.name}", _Measured(metric)) for metric in variant.metrics)
        for result in variant.results:
            found = outcomes(result, folder) if folder is not None else {}
            yield from (
                (f"{prefix}{result.id}.{metric.name}", _Measured(metric, found.get(metric.name)))
                for metric in _listed(result)
            )


def _listed(result: Result) -> tuple[Metric, ...]:
    return result.metrics if result.status == "ok" else ()


def _draft(address: str, before: _Measured | None, after: _Measured | None) -> tuple[Hashable, Difference]:
    """The difference before p-values are corrected, and what its test rests on: equal ones are one test."""
    first, second = before.metric if before else None, after.metric if after else None
    old, new = _value(first), _value(second)
    if before is None or after is None or old is None or new is None:
        kind: Kind = "same" if old is new is None else "gone" if new is None else "new"
        return address, Difference(address, first, second, kind)
    pair = aligned(before.outcomes, after.outcomes) if before.outcomes and after.outcomes else None
    if pair is not None:
        test = _of_pairs(paired_change(*pair))
        return (pair[0].tobytes(), pair[1].tobytes()), Difference(address, first, second, "unclear", test)
    return address, Difference(address, first, second, "unclear", _of_intervals(before.metric, after.metric))


def _judged(one: Difference, p: float, alpha: float) -> Difference:
    old, new = _value(one.before), _value(one.after)
    if old is None or new is None or one.after is None:
        return one
    test = replace(one.test, p=p) if one.test is not None and not math.isnan(p) else None
    return Difference(one.address, one.before, one.after, _kind(one.after, old, new, test, alpha), test)


def _kind(metric: Metric, old: float, new: float, test: Test | None, alpha: float) -> Kind:
    if old == new and (test is None or test.p >= alpha):
        return "same"
    if metric.higher_is_better is None or (test is None and metric.unit in _CLOCK):
        return "changed"
    if (test is not None and test.p >= alpha) or (test is None and math.isclose(old, new, rel_tol=_ROUNDING)):
        return "unclear"
    return "improved" if (new > old) == metric.higher_is_better else "regressed"


def _value(metric: Metric | None) -> float | None:
    value = metric.value if metric else None
    return None if value is None or math.isnan(value) else value


def _of_pairs(found: Paired) -> Test:
    return Test(found.method, found.n, found.difference, found.low, found.high, found.p, found.p)


def _of_intervals(before: Metric, after: Metric) -> Test | None:
    """The difference of two independent estimates; None unless both have an interval.

    On the same samples the test is conservative: what the two have in common only narrows their difference.
    """
    intervals = [(metric.ci_low, metric.ci_high) for metric in (after, before)]
    known = [
        (low, high) for low, high in intervals if low is not None and high is not None and math.isfinite(high - low)
    ]
    if len(known) < len(intervals) or before.value is None or after.value is None:
        return None
    difference = after.value - before.value
    low, high = sum_interval((1.0, -1.0), (after.value, before.value), known)
    arm = difference - low if difference > 0 else high - difference
    error = arm / float(ndtri(0.975))
    p = 2 * float(ndtr(-abs(difference) / error)) if error > 0 else float(difference == 0)
    return Test("intervals", None, difference, low, high, p, p)
