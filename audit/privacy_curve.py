"""The privacy-utility curve: accuracy and leakage against epsilon, over the private variants of one audit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..reports.record import Chart, Line, Metric, VariantRecord
from .gate_language import BASE

_KIND = "dp_sgd"
_SHOWN = {"performance": ("accuracy",), "membership": ("tpr_at_fpr_0.01", "tpr_at_fpr_0.001", "auc")}
"""By check: the metric to show, the first that the audit has."""


def with_privacy_curve(variants: Sequence[VariantRecord]) -> tuple[VariantRecord, ...]:
    """The variants, with the curve among the figures of the private one with the largest budget; as they are when
    fewer than two budgets were trained and examined."""
    private = sorted(filter(_epsilon, variants), key=lambda variant: _epsilon(variant) or 0.0)
    base = next((variant for variant in variants if variant.id == BASE), None)
    lines = tuple(_lines(private, base))
    if len(private) < 2 or not lines:
        return tuple(variants)
    chart = Chart(
        id="privacy_utility",
        title="Privacy and utility",
        caption="What each budget costs and buys: accuracy, and what membership inference still finds, with 95 % "
        "intervals; dashed: the model without private training. Lower epsilon is stricter.",
        x_label="epsilon",
        y_label="rate",
        x_scale="log",
        y_range=(0.0, 1.0),
        lines=lines,
    )
    place = private[-1].id
    return tuple(
        variant.model_copy(update={"figures": (*variant.figures, chart)}) if variant.id == place else variant
        for variant in variants
    )


def _lines(private: Sequence[VariantRecord], base: VariantRecord | None) -> Iterator[Line]:
    for check, names in _SHOWN.items():
        for result_id in dict.fromkeys(r.id for variant in private for r in variant.results if r.check == check):
            for name in names:
                points = [
                    (_epsilon(variant) or 0.0, metric)
                    for variant in private
                    if (metric := _metric(variant, result_id, name)) is not None
                ]
                if len(points) < 2:
                    continue
                label = points[0][1].label or f"{result_id}.{name}"
                yield _line(label, points)
                without = base and _metric(base, result_id, name)
                if without:
                    ends = [(points[0][0], without), (points[-1][0], without)]
                    yield _line(f"{label}, not private", ends, dashed=True)
                break


def _line(name: str, points: Sequence[tuple[float, Metric]], *, dashed: bool = False) -> Line:
    return Line(
        name=name,
        x=tuple(x for x, _ in points),
        y=tuple(metric.value for _, metric in points),
        low=() if dashed else tuple(metric.ci_low for _, metric in points),
        high=() if dashed else tuple(metric.ci_high for _, metric in points),
        dashed=dashed,
    )


def _epsilon(variant: VariantRecord) -> float | None:
    """The budget of a private training that was made; None for every other variant."""
    if variant.kind != _KIND or variant.status != "ok":
        return None
    return next((metric.value for metric in variant.metrics if metric.name == "epsilon"), None)


def _metric(variant: VariantRecord, result_id: str, name: str) -> Metric | None:
    result = variant.result(result_id)
    found = result.metric(name) if result is not None and result.status == "ok" else None
    return found if found is not None and found.value is not None else None
