"""Two records side by side: what improved, what regressed, what changed within the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..attacks.statistics import sum_interval
from ..reports.record import AuditRecord, Metric
from ..reports.writing import DASH, metric_text
from .gates import BASE

Change = Literal["improved", "regressed", "unclear", "same", "changed", "gone", "new"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric in both records.

    Attributes:
        address: ``[variant:]check.metric``.
        change: ``improved`` or ``regressed`` when the 95 % interval of the difference excludes zero, ``unclear``
            when it does not; metrics without interval count as they stand; ``changed`` where neither direction is
            better; ``gone`` or ``new`` where only one record has a value.
    """

    address: str
    before: Metric | None
    after: Metric | None
    change: Change


def compare(before: AuditRecord, after: AuditRecord) -> list[Difference]:
    """Every metric of either record, in the order of the first."""
    old, new = dict(_metrics(before)), dict(_metrics(after))
    addresses = dict.fromkeys([*old, *new])
    return [_difference(address, old.get(address), new.get(address)) for address in addresses]


def gate_changes(before: AuditRecord, after: AuditRecord) -> list[tuple[str, str, str]]:
    """Gates of both records whose verdict differs: expression, verdict before, verdict after."""
    old = {(gate.expression, gate.variant): gate.verdict for gate in before.gates}
    return [
        (gate.expression, old[gate.expression, gate.variant], gate.verdict)
        for gate in after.gates
        if old.get((gate.expression, gate.variant), gate.verdict) != gate.verdict
    ]


def regressed(differences: list[Difference], gates: list[tuple[str, str, str]]) -> bool:
    """Whether a metric regressed or is gone, or a gate that passed no longer does."""
    return any(d.change in ("regressed", "gone") for d in differences) or any(was == "pass" for _, was, _ in gates)


def cells(difference: Difference) -> tuple[str, str, str, str]:
    """What a table shows: address, before, after, change."""
    before, after = (metric_text(m) if m else DASH for m in (difference.before, difference.after))
    return difference.address, before, after, difference.change


def _metrics(record: AuditRecord) -> Iterator[tuple[str, Metric]]:
    for variant in record.variants:
        prefix = "" if variant.id == BASE else f"{variant.id}:"
        for result in variant.results:
            yield from ((f"{prefix}{result.id}.{metric.name}", metric) for metric in result.metrics)


def _difference(address: str, before: Metric | None, after: Metric | None) -> Difference:
    return Difference(address, before, after, _change(before, after))


def _change(before: Metric | None, after: Metric | None) -> Change:
    old, new = _value(before), _value(after)
    if before is None or after is None or old is None or new is None:
        return "same" if old is new is None else "gone" if new is None else "new"
    if old == new:
        return "same"
    if before.higher_is_better is None:
        return "changed"
    if not _beyond_noise(before, after, old, new):
        return "unclear"
    return "improved" if (new > old) == before.higher_is_better else "regressed"


def _value(metric: Metric | None) -> float | None:
    value = metric.value if metric else None
    return None if value is None or math.isnan(value) else value


def _beyond_noise(before: Metric, after: Metric, old: float, new: float) -> bool:
    """Whether the interval of the difference excludes zero; without intervals every difference counts.

    The samples are taken as independent; on the same samples the test is conservative.
    """
    intervals = [(metric.ci_low, metric.ci_high) for metric in (after, before)]
    known = [
        (low, high) for low, high in intervals if low is not None and high is not None and math.isfinite(high - low)
    ]
    if len(known) < len(intervals):
        return True
    low, high = sum_interval((1.0, -1.0), (new, old), known)
    return low > 0 or high < 0
