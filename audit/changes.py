"""What each variant changed: every metric that rests on single samples, paired with the base's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..reports.record import Change, Result, VariantRecord
from .gate_language import BASE
from .outcomes import aligned, outcomes
from .paired import Paired, paired_change


def with_changes(variants: Sequence[VariantRecord], directory: Path) -> tuple[VariantRecord, ...]:
    """The variants, each with its changes against the base.

    All paired tests of the record are one family: their p-values are corrected by Holm's method (1979). A comparison
    that stands under several names (clean accuracy in every evasion check) is one test.
    """
    base = next((variant for variant in variants if variant.id == BASE), None)
    if base is None:
        return tuple(variants)
    tested = {variant.id: list(_tests(base, variant, directory)) for variant in variants if variant is not base}
    adjusted = holm({(owner, key): paired.p for owner, tests in tested.items() for _, _, key, paired in tests})
    return tuple(
        variant.model_copy(
            update={
                "changes": tuple(
                    _change(check, metric, paired, adjusted[variant.id, key])
                    for check, metric, key, paired in tested.get(variant.id, ())
                )
            }
        )
        for variant in variants
    )


K = TypeVar("K")

_NESTED = "top_"
"""Top-k accuracies rise and fall with the accuracy: testing them too would only make the correction harsher."""

_Test = tuple[str, str, tuple[bytes, bytes], Paired]
"""Check, metric, what is compared (equal comparisons are one test), and how it came out."""


def _tests(base: VariantRecord, variant: VariantRecord, directory: Path) -> Iterator[_Test]:
    for result in variant.results:
        before = base.result(result.id)
        if before is not None:
            yield from _result_tests(before, result, directory)


def _result_tests(before: Result, after: Result, directory: Path) -> Iterator[_Test]:
    first, second = outcomes(before, directory), outcomes(after, directory)
    for name in (name for name in first if not name.startswith(_NESTED)):
        pair = aligned(first[name], second[name]) if name in second else None
        if pair is not None:
            yield after.id, name, (pair[0].tobytes(), pair[1].tobytes()), paired_change(*pair)


def holm(p_values: dict[K, float]) -> dict[K, float]:
    """Holm's adjusted p-values: those below alpha are rejected with a family-wise error of at most alpha.

    A p-value that is not a number stays so and is no test of the family.
    """
    known = sorted((key for key, p in p_values.items() if not math.isnan(p)), key=lambda key: p_values[key])
    steps = [min(1.0, (len(known) - place) * p_values[key]) for place, key in enumerate(known)]
    raised = np.maximum.accumulate(steps).tolist() if steps else []
    return {**p_values, **dict(zip(known, raised, strict=True))}


def _change(check: str, metric: str, paired: Paired, adjusted: float) -> Change:
    return Change(
        check=check,
        metric=metric,
        n=paired.n,
        gained=paired.gained,
        lost=paired.lost,
        difference=paired.difference,
        ci_low=_known(paired.low),
        ci_high=_known(paired.high),
        p=_known(paired.p),
        p_adjusted=_known(adjusted),
        method=paired.method,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def same_changes(first: Sequence[Change], second: Sequence[Change]) -> bool:
    """Whether two lists say the same but for rounding in the last digits, which libraries differ in."""
    return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))


def _same(first: Change, second: Change) -> bool:
    pairs = [(value, getattr(second, name)) for name, value in first]
    return all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a == b
        for a, b in pairs
    )
