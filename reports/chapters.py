"""The report's chapters: results of the same check gathered across variants, checks gathered under their question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .comparison import MetricRow, Shown, gated_metrics, headline_names, metric_rows, overlay, variant_title
from .escaping import Anchors
from .galleries import DrawnGallery, draw_gallery
from .questions import DEFENSES, ORDER, chapter_of
from .record import AuditRecord, Chart, Excerpts, Gallery, Matrix, Result, Table, VariantRecord

_PICTURE_BUDGET = 3_000_000
"""Bytes of all PNGs together: four megabytes in base64, so that the report stays under five."""


@dataclass(frozen=True, slots=True)
class OnVariant:
    """A check's result on one variant, with its figures by kind."""

    variant: VariantRecord
    title: str
    result: Result
    anchor: str
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    matrices: tuple[Matrix, ...]
    galleries: tuple[DrawnGallery, ...]
    excerpts: tuple[Excerpts, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """One check across all variants."""

    check: str
    title: str
    question: str
    anchor: str
    summary: str
    first: OnVariant
    rest: tuple[OnVariant, ...]
    variants: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    headlines: tuple[MetricRow, ...]
    charts: tuple[Shown, ...]

    @property
    def all(self) -> tuple[OnVariant, ...]:
        return (self.first, *self.rest)

    @property
    def warnings(self) -> list[tuple[str, list[str]]]:
        """Each warning once, with the titles of the variants that have it."""
        texts = dict.fromkeys(text for on in self.all for text in on.result.warnings)
        return [(text, [on.title for on in self.all if text in on.result.warnings]) for text in texts]


@dataclass(frozen=True, slots=True)
class Chapter:
    """A question and the checks that answer it."""

    question: str
    anchor: str
    groups: tuple[Group, ...]

    @property
    def after_defenses(self) -> bool:
        """Whether its place is behind the chapter on defenses."""
        return ORDER.index(self.question) > ORDER.index(DEFENSES)


def chapters(record: AuditRecord, directory: Path, anchors: Anchors) -> list[Chapter]:
    """Chapters in the order of the seven questions."""
    results = [(variant, result) for variant in record.variants for result in variant.results]
    ids = dict.fromkeys(result.id for _, result in results)
    draw = _gallery_drawer(record, directory)
    questions: dict[str, list[str]] = {}
    for check in ids:
        first = next(result for _, result in results if result.id == check)
        questions.setdefault(chapter_of(first), []).append(check)
    return [
        Chapter(
            question,
            anchors.new(question),
            tuple(_group(record, check, anchors, draw) for check in questions[question]),
        )
        for question in sorted(questions, key=ORDER.index)
    ]


def base_variant(record: AuditRecord) -> VariantRecord | None:
    """The untreated model: the variant of kind base, or the first."""
    return next((v for v in record.variants if v.kind == "base"), record.variants[0] if record.variants else None)


def ordered_variants(record: AuditRecord) -> list[VariantRecord]:
    """The base, then the others as recorded."""
    base = base_variant(record)
    return [] if base is None else [base, *(variant for variant in record.variants if variant is not base)]


_Drawer = Callable[[Gallery, Result, bool], DrawnGallery]


def _group(record: AuditRecord, check: str, anchors: Anchors, draw: _Drawer) -> Group:
    variants = ordered_variants(record)
    anchor = anchors.new("check", check)
    pairs = [(variant, result) for variant in variants for result in variant.results if result.id == check]
    first = pairs[0][1]
    merged, left = _merge_charts(
        [(variants.index(variant), variant_title(variant), result) for variant, result in pairs]
    )
    on = [
        _on_variant(variant, result, anchors.new(check, variant.id), charts, draw, place == 0)
        for place, ((variant, result), charts) in enumerate(zip(pairs, left, strict=True))
    ]
    rows = metric_rows(check, variants)
    names = headline_names(first.check, rows, gated_metrics(record, check))
    return Group(
        check=check,
        title=first.title or check,
        question="" if first.question in ORDER else first.question,
        anchor=anchor,
        summary=first.summary,
        first=on[0],
        rest=tuple(on[1:]),
        variants=tuple(variant_title(variant) for variant in variants),
        rows=tuple(rows),
        headlines=tuple(row for row in rows if row.name in names),
        charts=tuple(merged),
    )


def _on_variant(
    variant: VariantRecord, result: Result, anchor: str, charts: Sequence[Chart], draw: _Drawer, is_first: bool
) -> OnVariant:
    figures = result.figures
    return OnVariant(
        variant=variant,
        title=variant_title(variant),
        result=result,
        anchor=anchor,
        charts=tuple(charts),
        tables=tuple(figure for figure in figures if isinstance(figure, Table)),
        matrices=tuple(figure for figure in figures if isinstance(figure, Matrix)),
        galleries=tuple(draw(figure, result, is_first) for figure in figures if isinstance(figure, Gallery)),
        excerpts=tuple(figure for figure in figures if isinstance(figure, Excerpts)),
    )


def _merge_charts(results: Sequence[tuple[int, str, Result]]) -> tuple[list[Shown], list[list[Chart]]]:
    """Charts for the group (overlaid, or the first variant's), and those left to each variant."""
    by_id: dict[str, list[tuple[int, int, str, Chart]]] = {}
    for order, (place, title, result) in enumerate(results):
        for figure in result.figures:
            if isinstance(figure, Chart):
                by_id.setdefault(figure.id, []).append((order, place, title, figure))
    shown: list[Shown] = []
    left: list[list[Chart]] = [[] for _ in results]
    for versions in by_id.values():
        merged = overlay([version[1:] for version in versions])
        shown.append(merged or Shown(_titled(versions[0][3], versions[0][2])))
        for order, _, _, chart in versions[1:] if merged is None else ():
            left[order].append(chart)
    return shown, left


def _titled(chart: Chart, variant: str) -> Chart:
    return chart.model_copy(update={"title": f"{chart.title} ({variant})"})


def _gallery_drawer(record: AuditRecord, directory: Path) -> _Drawer:
    """Draws galleries so that all together keep the budget: those in sight get four times a folded one's share."""
    results = [result for variant in record.variants for result in variant.results]
    seen: set[str] = set()
    shares = 0
    for result in results:
        weight = 1 if result.id in seen else 4
        seen.add(result.id)
        shares += weight * sum(isinstance(figure, Gallery) for figure in result.figures)

    def draw(gallery: Gallery, result: Result, is_first: bool) -> DrawnGallery:
        budget = _PICTURE_BUDGET * (4 if is_first else 1) // max(shares, 1)
        return draw_gallery(gallery, result.evidence, directory, 8 if is_first else 4, budget)

    return draw
