"""How the model fares when images are turned, moved, recoloured or blurred in the worst way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...attacks.shifts.blur import BlurShift
from ...attacks.shifts.colour import ColourShift
from ...attacks.shifts.grid import Shift as Grid
from ...attacks.shifts.spatial import Padding, SpatialGrid
from ...reports.record import Evidence, Figure, Finding, Metric, Result, Severity
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .images import Images
from .metrics import by_name, percent, rate
from .outputs import same_predictions
from .shift_figures import bars, gallery, gallery_tensors, showcase, single_changes
from .shift_search import Searched, search, verify_search

Kind = Literal["spatial", "colour", "blur"]

_LOSSES: tuple[tuple[float, Severity], ...] = ((0.75, "high"), (0.4, "medium"), (0.1, "low"))
_WORDS: dict[str, str] = {
    "spatial": "turning, moving and scaling the image",
    "colour": "changing light and colour",
    "blur": "blurring the image",
}


class Shift(Check):
    """Worst case over grids of rotation, translation and scale, of light and colour, and of blur."""

    name: ClassVar[str] = "shift"
    title: ClassVar[str] = "Natural changes, worst case"
    question: ClassVar[str] = "Is the model still right when an image is turned, moved, recoloured or blurred?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    references: ClassVar[tuple[str, ...]] = (
        "Engstrom et al., Exploring the Landscape of Spatial Robustness, arXiv 1712.02779",
        "Hosseini and Poovendran, Semantic Adversarial Examples, arXiv 1804.00499",
    )
    standards: ClassVar[tuple[str, ...]] = standards.BLACK_BOX_EVASION
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of samples classified as labelled, unchanged.",
        "robust_accuracy": "Share of samples classified as labelled at every point of every grid examined.",
        "spatial_robust_accuracy": "Share right under every rotation, translation and scale of the grid.",
        "colour_robust_accuracy": "Share right under every change of light and colour of the grid.",
        "blur_robust_accuracy": "Share right under every blur of the grid.",
    }
    cost: ClassVar[str] = "up to one forward pass per sample and grid point, 500 with the defaults on colour images"

    kinds: tuple[Kind, ...] = Field(
        default=("spatial", "colour", "blur"), min_length=1, description="Which grids to search."
    )
    rotations: tuple[float, ...] = Field(
        default=SpatialGrid().rotations, min_length=1, description="Degrees, counter-clockwise."
    )
    translations: tuple[float, ...] = Field(
        default=SpatialGrid().translations, min_length=1, description="Shares of width and height, in all pairs."
    )
    scales: tuple[float, ...] = Field(default=SpatialGrid().scales, min_length=1, description="Magnifications.")
    padding: Padding = Field(default="zeros", description="What lies outside of the image.")
    brightness: tuple[float, ...] = Field(
        default=ColourShift().brightness, min_length=1, description="Added to values in 0..1."
    )
    contrast: tuple[float, ...] = Field(
        default=ColourShift().contrast, min_length=1, description="Factors on the deviation from the mean."
    )
    gamma: tuple[float, ...] = Field(default=ColourShift().gamma, min_length=1, description="Exponents of the values.")
    saturation: tuple[float, ...] = Field(
        default=ColourShift().saturation, min_length=1, description="Factors on colourfulness; three channels only."
    )
    hue: tuple[float, ...] = Field(
        default=ColourShift().hue, min_length=1, description="Turns of the hue in degrees; three channels only."
    )
    sigmas: tuple[float, ...] = Field(
        default=BlurShift().sigmas, min_length=1, description="Widths of the Gaussian blur in pixels."
    )
    limit: int | None = Field(default=None, ge=1, description="Examine at most so many samples, evenly spaced.")
    batch_size: int | None = Field(default=None, ge=1, description="Images per forward pass; 256 if left out.")

    @model_validator(mode="after")
    def _grids_exist(self) -> Shift:
        for kind, grid in self.grids().items():
            if len(grid.points(3)) < 2:
                raise ValueError(f"the {kind} grid holds no change: widen it, or leave {kind!r} out of kinds")
        return self

    def grids(self) -> dict[str, Grid]:
        """The configured grids by kind.

        Raises:
            ValueError: when a value makes no sense.
        """
        spatial = SpatialGrid(self.rotations, self.translations, self.scales, self.padding)
        colour = ColourShift(self.brightness, self.contrast, self.gamma, self.saturation, self.hue)
        grids: dict[str, Grid] = {"spatial": spatial, "colour": colour, "blur": BlurShift(self.sigmas)}
        return {kind: grid for kind, grid in grids.items() if kind in self.kinds}

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        images = Images.of(target, samples, self.limit)
        batch = self.batch_size or context.batch_size
        logits = images.logits(images.x, batch)
        clean = logits.argmax(1) == images.y
        context.progress.start(self.title, len(images) * len(self.kinds))
        searched = {kind: search(grid, images, batch, context) for kind, grid in self.grids().items()}
        metrics = tuple(_metrics(clean, {kind: one.success for kind, one in searched.items()}))
        evidence, figures = self._shown(images, logits, searched, context)
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(by_name(metrics)),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}, exclude_none=True),
            metrics=metrics,
            findings=tuple(_findings(clean, images.y, searched)),
            figures=figures,
            evidence=evidence,
            not_covered=(
                "Changes between the points of the grids and beyond their ends; several kinds of change at once.",
                "Changes of perspective, occlusion, and natural changes of the scene itself.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=len(images) + sum(one.forwards for one in searched.values()),
        )

    def _shown(
        self, images: Images, logits: Tensor, searched: Mapping[str, Searched], context: Context
    ) -> tuple[tuple[Evidence, ...], tuple[Figure, ...]]:
        clean, k = logits.argmax(1) == images.y, len(images.target.classes)
        tensors = {"ids": images.ids, "labels": images.y, "clean_logits": logits}
        for kind, one in searched.items():
            tensors |= one.evidence(kind, k)
        files = [context.evidence("predictions", tensors)]
        figures: list[Figure] = [bars(images, clean, searched), single_changes(images, searched)]
        shown = showcase(clean, searched)
        if shown:
            files.append(context.evidence("gallery", gallery_tensors(images, searched, shown), name="gallery"))
            figures.append(gallery(images, logits, searched, shown, files[-1].path))
        return tuple(files), tuple(figures)

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        images = Images.of(target, samples, self.limit)
        batch = self.batch_size or context.batch_size
        recorded = context.read_evidence(result.evidence[0])
        same = torch.equal(recorded["ids"], images.ids) and torch.equal(recorded["labels"], images.y)
        yield Claim("the changes were applied to the audited samples and labels", same)
        if not same:
            return
        agree = same_predictions(images.logits(images.x, batch), recorded["clean_logits"])
        yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)} samples")
        for kind, grid in self.grids().items():
            yield from verify_search(kind, grid, images, recorded, batch)
        clean = recorded["clean_logits"].argmax(1) == images.y
        for metric in _metrics(clean, {kind: recorded[f"{kind}_success"] for kind in self.grids()}):
            claimed = result.metric(metric.name)
            value = None if claimed is None else claimed.value
            what = f"{metric.name} follows from the recorded errors"
            yield Claim(what, value == metric.value, f"{value}, recounted {metric.value}")


def _metrics(clean: Tensor, success: Mapping[str, Tensor]) -> Iterator[Metric]:
    """Rates from which samples are right unchanged, and which the model errs on somewhere, by kind."""
    n = len(clean)
    yield rate("clean_accuracy", int(clean.sum()), n, label="Clean accuracy", higher_is_better=True)
    broken = reduce(torch.logical_or, success.values(), ~clean)
    label = "Accuracy in the worst case of all changes"
    yield rate("robust_accuracy", int((~broken).sum()), n, label=label, higher_is_better=True)
    for kind, own in success.items():
        label = f"Accuracy in the worst case of {_WORDS[kind]}"
        right = int((clean & ~own).sum())
        yield rate(f"{kind}_robust_accuracy", right, n, label=label, higher_is_better=True)


def _summary(metrics: Mapping[str, Metric]) -> str:
    clean, robust = metrics["clean_accuracy"], metrics["robust_accuracy"]
    assert clean.value is not None and robust.value is not None  # noqa: PT018
    assert robust.ci_low is not None and robust.ci_high is not None  # noqa: PT018
    return (
        f"Of {clean.n} samples the model gets {percent(clean.value)} right as they are, and {percent(robust.value)} "
        f"(95 % interval {percent(robust.ci_low)} to {percent(robust.ci_high)}) whichever change of the grids is made. "
        "This is an upper bound: changes between the grid's points can only lower it."
    )


def _findings(clean: Tensor, y: Tensor, searched: Mapping[str, Searched]) -> Iterator[Finding]:
    right = int(clean.sum())
    for kind, one in searched.items() if right else ():
        fallen = clean & one.success
        share = int(fallen.sum()) / right
        yield Finding(
            severity=_severity(share),
            title=f"{percent(share)} of correct predictions are overturned by {_WORDS[kind]}",
            detail=f"{int(fallen.sum())} of {right} correctly classified samples are misclassified at some point of "
            f"a grid of {len(one.points)}.{_most(one, y)}",
            remedy="Train with these changes as augmentations." if share >= 0.1 else "",
            standards=standards.BLACK_BOX_EVASION,
        )


def _most(one: Searched, y: Tensor) -> str:
    """Which single change costs most, in a sentence."""
    if len(one.singles) == 0:
        return ""
    right = (one.single_predictions == y).double().mean(1)
    point = one.points[one.singles[int(right.argmin())]].tolist()
    words = one.shift.describe([round(value, 6) for value in point])
    return (
        f" Of single changes the same for all samples, the worst ({words}) leaves {percent(float(right.min()))} right."
    )


def _severity(share: float) -> Severity:
    for least, level in _LOSSES:
        if share >= least:
            return level
    return "info"
