"""Variants next to each other: headline metrics, overlaid charts, and the trade between clean and robust accuracy."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .findings import OWN
from .ordered import as_line
from .record import AuditRecord, Change, Chart, Line, Metric, Result, VariantRecord
from .writing import metric_label, number

_HEADLINES: dict[str, tuple[str, ...]] = {
    "performance": ("accuracy", "balanced_accuracy", "f1_macro", "ece"),
    "attribution": ("*_deletion_gain", "*_top_overlap_attacked", "deletion_gain", "top_overlap_attacked"),
    "evasion": ("clean_accuracy", "robust_accuracy", "attack_success_rate"),
    "corruption": ("corruption_accuracy", "mean_corruption_error", "mce", "worst_corruption_accuracy"),
    "certification": ("certified_accuracy", "empirical_robust_accuracy", "mean_certified_radius"),
    "transfer": ("transfer_robust_accuracy", "transfer_rate"),
    "membership": ("tpr_at_fpr_0.001", "tpr_at_fpr_0.01", "auc", "advantage"),
}
_ALPHA = 0.05
_TIMES = ("s", "ms")
"""Units of measured time, whose interval knows nothing of what else the machine did."""
_MOST_HEADLINES = 8
_MOST_OVERLAID = 8


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric on one variant.

    ``change`` is better or worse: by the paired test where the samples are the same, otherwise when its interval and
    the base's do not touch. ``detail`` says by how much.
    """

    metric: Metric | None
    status: str
    change: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric across the variants."""

    check: str
    name: str
    label: str
    cells: tuple[Cell, ...]
    higher_is_better: bool | None
    methods: tuple[str, ...]
    n: int | None


def metric_rows(check: str, variants: Sequence[VariantRecord]) -> list[MetricRow]:
    """Every metric of one check, one row each; the base is the first of ``variants``."""
    results = [variant.result(check) for variant in variants]
    changes = [{change.metric: change for change in variant.changes if change.check == check} for variant in variants]
    columns = [
        _Column(result.status if result else "missing", result.metrics if result else (), paired)
        for result, paired in zip(results, changes, strict=True)
    ]
    return _rows(check, columns)


def own_rows(variants: Sequence[VariantRecord]) -> list[MetricRow]:
    """What each variant is and costs: its own metrics, one row each; the base is the first of ``variants``."""
    return _rows(OWN, [_Column("ok", variant.metrics, {}) for variant in variants])


def headline_names(kind: str, rows: Sequence[MetricRow], gated: set[str]) -> list[str]:
    """The few metrics that stand for a check: the field's usual ones, or its first, and every gated one."""
    names = [row.name for row in rows]
    usual = [name for pattern in _HEADLINES.get(kind, ()) for name in fnmatch.filter(names, pattern)] or names[:3]
    chosen = [*usual[:_MOST_HEADLINES], *sorted(gated)]
    return [name for name in names if name in chosen]


def gated_metrics(record: AuditRecord, check: str) -> set[str]:
    """Names of the metrics of ``check`` that some gate speaks of."""
    address = re.compile(rf"(?<![\w.]){re.escape(check)}\.([\w.\-]+)")
    return {match for gate in record.gates for match in address.findall(gate.expression)}


@dataclass(frozen=True, slots=True)
class Shown:
    """A chart and the colour of each of its lines: a variant has the same colour in every chart."""

    chart: Chart
    colours: tuple[int, ...] = ()


def overlay(charts: Sequence[tuple[int, str, Chart]]) -> Shown | None:
    """One chart with the lines of all variants, or None where that would be unreadable.

    Args:
        charts: place of the variant, its title, its chart. Dashed lines are references, taken from the first only.
    """
    if len(charts) == 1:
        return Shown(charts[0][2])
    first = charts[0][2]
    parts = [(place, title, line) for place, title, chart in charts for line in chart.lines if not line.dashed]
    alike = all((chart.style, chart.categories) == (first.style, first.categories) for *_, chart in charts)
    single = all(sum(not line.dashed for line in chart.lines) == 1 for *_, chart in charts)
    numeric_bars = first.style == "bar" and not first.categories
    if not alike or not single or numeric_bars or len(parts) > _MOST_OVERLAID:
        return None
    references = [line for line in first.lines if line.dashed]
    named = [line.model_copy(update={"name": title}) for _, title, line in parts]
    spans = {name: _span(charts, name) for name in ("x_range", "y_range")}
    merged = as_line(first.model_copy(update={"lines": (*named, *references), **spans}))
    return Shown(merged, (*(place for place, *_ in parts), *range(len(references))))


def trade_offs(record: AuditRecord, variants: Sequence[VariantRecord]) -> list[Shown]:
    """For every check with a robust accuracy: clean against robust accuracy, one point a variant, 95 % error bars."""
    ids = dict.fromkeys(
        result.id
        for variant in record.variants
        for result in variant.results
        if result.status == "ok" and result.metric("robust_accuracy")
    )
    charts = (_trade_off(record, variants, check) for check in ids)
    return [shown for shown in charts if len(shown.chart.lines) > 1]


def _trade_off(record: AuditRecord, variants: Sequence[VariantRecord], check: str) -> Shown:
    points = [(place, line) for place, variant in enumerate(variants) if (line := _point(variant, check)) is not None]
    title = next(result.title for variant in record.variants if (result := variant.result(check)))
    chart = Chart(
        id=f"trade-off-{check}",
        title=f"Clean against robust accuracy: {title}",
        caption="Up and to the right is better; the bars are 95 % intervals.",
        style="scatter",
        x_label="clean accuracy (%)",
        y_label="robust accuracy (%)",
        x_range=_roomy(v for _, line in points for v in (*line.x, *line.x_low, *line.x_high)),
        y_range=_roomy(v for _, line in points for v in (*line.y, *line.low, *line.high)),
        lines=tuple(line for _, line in points),
    )
    return Shown(chart, tuple(place for place, _ in points))


def _point(variant: VariantRecord, check: str) -> Line | None:
    result = variant.result(check)
    robust = result.metric("robust_accuracy") if result and result.status == "ok" else None
    clean = _clean_accuracy(variant, result)
    if robust is None or clean is None or robust.value is None or clean.value is None:
        return None
    return Line(
        name=variant_title(variant),
        x=(clean.value * 100,),
        y=(robust.value * 100,),
        low=(_percent(robust.ci_low),),
        high=(_percent(robust.ci_high),),
        x_low=(_percent(clean.ci_low),),
        x_high=(_percent(clean.ci_high),),
    )


def _clean_accuracy(variant: VariantRecord, result: Result | None) -> Metric | None:
    """From the same check, so that both numbers rest on the same samples; else from the performance check."""
    own = (result.metric("clean_accuracy") or result.metric("accuracy")) if result else None
    others = (other.metric("accuracy") for other in variant.results if other.check == "performance")
    return own or next((metric for metric in others if metric), None)


def variant_title(variant: VariantRecord) -> str:
    """The variant's title, or its id."""
    return variant.title or variant.id


@dataclass(frozen=True, slots=True)
class _Column:
    """The metrics of one variant, and which of them were compared with the base sample by sample."""

    status: str
    metrics: tuple[Metric, ...]
    changes: Mapping[str, Change]

    def metric(self, name: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.name == name), None)


def _rows(check: str, columns: Sequence[_Column]) -> list[MetricRow]:
    names = dict.fromkeys(metric.name for column in columns for metric in column.metrics)
    return [_row(check, name, columns) for name in names]


def _row(check: str, name: str, columns: Sequence[_Column]) -> MetricRow:
    metrics = [column.metric(name) for column in columns]
    known = [metric for metric in metrics if metric]
    cells = [Cell(metrics[0], columns[0].status)]
    cells += [_cell(metrics[0], column.metric(name), column) for column in columns[1:]]
    methods = tuple(dict.fromkeys(metric.method for metric in known if metric.method))
    return MetricRow(check, name, metric_label(known[0]), tuple(cells), known[0].higher_is_better, methods, known[0].n)


def _cell(base: Metric | None, metric: Metric | None, column: _Column) -> Cell:
    paired = column.changes.get(metric.name) if metric else None
    if metric is None or paired is None:
        return Cell(metric, column.status, _apart(base, metric))
    return Cell(metric, column.status, _direction(paired, metric), paired_text(paired, metric.unit))


def _direction(change: Change, metric: Metric) -> str:
    if metric.higher_is_better is None or change.p_adjusted is None or change.p_adjusted >= _ALPHA:
        return ""
    return "better" if (change.difference > 0) == metric.higher_is_better else "worse"


def paired_text(change: Change, unit: str) -> str:
    """``+3.2 (+1.0 to +5.4), p = 0.004``, rates in percentage points."""
    share = unit == "rate"
    ends = [change.difference, change.ci_low, change.ci_high]
    parts = ["–" if value is None else f"{100 * value:+.1f}" if share else f"{value:+.3g}" for value in ends]
    text = f"{parts[0]}{' points' if share else ''} ({parts[1]} to {parts[2]})".replace("-", "−")
    return text if change.p_adjusted is None else f"{text}, {p_text(change.p_adjusted)}"


def p_text(p: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {number(round(p, 3))}"


def _apart(base: Metric | None, metric: Metric | None) -> str:
    """``better`` or ``worse`` when the two 95 % intervals do not touch and the metric has a good side."""
    bounds = [v for m in (base, metric) if m for v in (m.ci_low, m.ci_high)]
    if base is None or metric is None or metric.higher_is_better is None or metric.unit in _TIMES:
        return ""
    if not all(v is not None and math.isfinite(v) for v in bounds):
        return ""
    base_low, base_high, low, high = (float(v or 0) for v in bounds)
    if low <= base_high and base_low <= high:
        return ""
    return "better" if (low > base_high) == metric.higher_is_better else "worse"


def _span(charts: Sequence[tuple[int, str, Chart]], field: str) -> tuple[float, float] | None:
    ranges = [getattr(chart, field) for *_, chart in charts]
    if any(given is None for given in ranges):
        return None
    return min(min(given) for given in ranges), max(max(given) for given in ranges)


def _roomy(percents: Iterable[float | None]) -> tuple[float, float]:
    """A range with a fifth of air around the values, for labels; zero and a hundred are its ends where near."""
    known = [value for value in percents if value is not None and math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=100.0)
    air = max(0.2 * (high - low), 2.0)
    return max(low - air, -air / 2), min(high + air, 100 + air / 2)


def _percent(rate: float | None) -> float | None:
    return None if rate is None else rate * 100
