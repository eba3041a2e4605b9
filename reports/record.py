"""The audit record, ``audit.json``: the one source of every report."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2

Severity = Literal["critical", "high", "medium", "low", "info"]
Status = Literal["ok", "error", "skipped"]
GateVerdict = Literal["pass", "fail", "inconclusive", "error"]
OverallVerdict = Literal["pass", "fail", "inconclusive", "error", "none"]


class Part(BaseModel):
    """Base of all parts: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True, ser_json_inf_nan="strings")


class Metric(Part):
    """One number with its 95 % interval. ``value`` is None when it is undefined (the reason is in the warnings)."""

    name: str = Field(description="Addressed as <check id>.<name>, on a variant <variant id>:<check id>.<name>.")
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = Field(default=None, description="How many samples the value rests on.")
    unit: str = Field(default="", description="'rate' for shares in 0..1, otherwise a unit such as 'bits' or 's'.")
    higher_is_better: bool | None = None
    label: str = Field(default="", description="What a person reads; the name when empty.")
    method: str = Field(default="", description="How the interval was made: wilson, clopper-pearson, bootstrap.")


class Finding(Part):
    """Something a reader must know, with the standards it falls under."""

    severity: Severity
    title: str
    detail: str
    remedy: str = ""
    standards: tuple[str, ...] = ()


class Evidence(Part):
    """A file under the output folder that backs a claim."""

    path: str = Field(description="Relative to the output folder, with forward slashes.")
    sha256: str
    kind: str = Field(description="adversarial, scores, attributions, weights, history …")


class Line(Part):
    """One line of a chart; ``low`` and ``high`` bound a band, or error bars where points are drawn.

    ``x_low`` and ``x_high`` are error bars along x, drawn for scatter charts.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    x_low: tuple[float | None, ...] = ()
    x_high: tuple[float | None, ...] = ()
    dashed: bool = False


class Chart(Part):
    """Lines or bars. ``x_scale``/``y_scale`` log for log axes. Bars use x as the position of ``categories``."""

    kind: Literal["chart"] = "chart"
    id: str
    title: str
    caption: str = Field(default="", description="One plain sentence: what to read off it.")
    style: Literal["line", "bar", "scatter", "step"] = "line"
    x_label: str
    y_label: str
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    diagonal: bool = False
    categories: tuple[str, ...] = ()
    lines: tuple[Line, ...]


class Table(Part):
    """Rows of text and numbers; None prints as a dash."""

    kind: Literal["table"] = "table"
    id: str
    title: str
    caption: str = ""
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


class Matrix(Part):
    """A labelled matrix of counts or rates, rows first (confusion: rows true class, columns predicted)."""

    kind: Literal["matrix"] = "matrix"
    id: str
    title: str
    caption: str = ""
    row_label: str
    column_label: str
    labels: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


class Picture(Part):
    """One picture of a gallery item: a tensor of an evidence file and how to draw it.

    Images are taken as 0..1 and stretched, with a note, when they leave it. A heat map lies over the nearest image
    before it in the gallery.
    """

    tensor: str = Field(description="Key in the gallery's evidence file, shape (n, c, h, w) or (n, h, w).")
    title: str
    draw: Literal["image", "difference", "heat"] = "image"
    minus: str = Field(default="", description="For difference: the key whose tensor is subtracted.")


class Item(Part):
    """One row of a gallery: which row of the evidence tensors, and captions under the pictures."""

    index: int
    sample_id: str
    captions: tuple[str, ...] = Field(description="One per picture of the gallery.")


class Gallery(Part):
    """Pictures drawn from an evidence file."""

    kind: Literal["gallery"] = "gallery"
    id: str
    title: str
    caption: str = ""
    evidence: str = Field(description="Path of an Evidence of the same result.")
    pictures: tuple[Picture, ...]
    items: tuple[Item, ...]


class Mark(Part):
    """A stretch of a text that stands out: an edit, or a word that speaks for (above 0) or against (below) a class."""

    start: int = Field(ge=0, description="First character, counted in Unicode code points.")
    end: int = Field(description="Past the last character.")
    weight: float = Field(default=1.0, ge=-1, le=1)


class MarkedText(Part):
    """A text with marks, in order and apart from each other."""

    label: str
    text: str
    marks: tuple[Mark, ...] = ()


class Excerpt(Part):
    """One sample: versions of its text side by side."""

    sample_id: str
    texts: tuple[MarkedText, ...]


class Excerpts(Part):
    """Texts with marks: ``edits`` underlines what was changed, ``relevance`` colours by weight."""

    kind: Literal["excerpts"] = "excerpts"
    id: str
    title: str
    caption: str = ""
    style: Literal["edits", "relevance"] = "edits"
    items: tuple[Excerpt, ...]


Figure = Annotated[Chart | Table | Matrix | Gallery | Excerpts, Field(discriminator="kind")]


class Result(Part):
    """What one check found on one variant."""

    check: str
    id: str
    title: str
    question: str = Field(default="", description="The report's chapter, such as 'Can it be fooled?'.")
    summary: str = Field(default="", description="A plain sentence or two: what the numbers mean.")
    status: Status
    error: str = Field(default="", description="Why, when status is error or skipped.")
    parameters: dict[str, Any] = {}
    metrics: tuple[Metric, ...] = ()
    findings: tuple[Finding, ...] = ()
    figures: tuple[Figure, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    warnings: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    standards: tuple[str, ...] = ()
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0

    def metric(self, name: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.name == name), None)


class Change(Part):
    """What a variant changed in one metric, judged sample by sample against the base on the same n samples."""

    check: str = Field(description="Id of the result on both sides.")
    metric: str
    n: int
    gained: int = Field(description="Samples whose outcome rose.")
    lost: int = Field(description="Samples whose outcome fell.")
    difference: float = Field(description="Mean of the variant less mean of the base.")
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = Field(description="Two-sided p-value of no change.")
    p_adjusted: float | None = Field(description="After Holm's correction over all paired tests of the record.")
    method: str = Field(description="McNemar, exact (with Tango's interval), or paired t.")


class VariantRecord(Part):
    """The model under one treatment, and the results of every check on it."""

    id: str
    kind: str = Field(description="'base', or the name of the defense or retraining.")
    title: str = ""
    summary: str = ""
    parameters: dict[str, Any] = {}
    metrics: tuple[Metric, ...] = Field(default=(), description="Its own figures: parameters, epsilon, training cost.")
    figures: tuple[Figure, ...] = ()
    findings: tuple[Finding, ...] = Field(default=(), description="What only shows beside the base.")
    changes: tuple[Change, ...] = Field(default=(), description="Against the base, metric by metric; none on the base.")
    warnings: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    status: Status = "ok"
    error: str = ""
    seconds: float = 0.0
    results: tuple[Result, ...] = ()

    def result(self, check_id: str) -> Result | None:
        return next((result for result in self.results if result.id == check_id), None)


class GatePart(Part):
    """One condition and how it came out.

    For a condition that compares two metrics, value and interval are those of the difference, and the threshold is
    what the difference is held against.
    """

    expression: str
    variant: str = "base"
    verdict: GateVerdict
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    threshold: float | None = None
    operator: str = Field(default="", description=">=, >, <=, < or ==.")
    unit: str = Field(default="", description="Of value and threshold, as for a metric.")
    check: str = Field(default="", description="Id of the result that it speaks of.")
    n: int | None = None
    reason: str = ""


class Gate(GatePart):
    """One gate and how it came out; one of several conditions carries the numbers of the condition that decided."""

    parts: tuple[GatePart, ...] = Field(default=(), description="Each condition, where the gate has several.")


class ModelInfo(Part):
    """Which model was audited."""

    source: str
    sha256: str
    weights: str = ""
    modality: str
    access: tuple[str, ...]
    parameters: int | None = None
    architecture: str = ""
    trusted: bool = Field(default=False, description="True when the spec allowed loading that can run code.")


class DataInfo(Part):
    """On which data."""

    source: str
    sha256: str
    n: int
    classes: tuple[str, ...]
    shape: tuple[int, ...] = ()


class AuditRecord(Part):
    """Everything an audit found."""

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str
    created: datetime
    seconds: float = 0.0
    tool: dict[str, str]
    environment: dict[str, str]
    spec: dict[str, Any] = Field(default={}, description="The spec as it was run.")
    spec_sha256: str = ""
    model: ModelInfo
    data: DataInfo
    seed: int
    verdict: OverallVerdict
    gates: tuple[Gate, ...] = ()
    variants: tuple[VariantRecord, ...]
    not_covered: tuple[str, ...] = ()

    def variant(self, variant_id: str) -> VariantRecord | None:
        return next((variant for variant in self.variants if variant.id == variant_id), None)
