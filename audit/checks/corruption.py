"""How the model fares when images are noisy, blurred, or taken in bad weather."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from ...attacks.corruptions.common import APPROXIMATED, CORRUPTIONS, SEVERITIES, corrupt
from ...reports.record import Evidence, Figure, Finding, Gallery, Metric, Result, Severity
from ..registry import unknown
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .corruption_figures import charts, gallery, shown_sample
from .corruption_measures import Measured, spoken
from .images import Images, compact
from .metrics import by_name, percent
from .outputs import same_predictions

_LOSSES: tuple[tuple[float, Severity], ...] = ((0.5, "high"), (0.25, "medium"), (0.1, "low"))
_AGREEING = 0.999
"""Share of predictions that must come out again: other hardware rounds a pixel of a JPEG to the next step."""


class Corruption(Check):
    """Accuracy under the 15 common corruptions at 5 severities, and the mean corruption error."""

    name: ClassVar[str] = "corruption"
    title: ClassVar[str] = "Common corruptions"
    question: ClassVar[str] = "Is the model still right when images are noisy, blurred, or taken in bad weather?"
    requires: ClassVar[frozenset[Access]] = frozenset({"labels"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    references: ClassVar[tuple[str, ...]] = (
        "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, "
        "arXiv 1903.12261",
    )
    standards: ClassVar[tuple[str, ...]] = standards.FAULTS
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of samples classified as labelled, without corruption.",
        "corruption_accuracy": "Accuracy averaged over the corruptions and severities examined.",
        "mean_corruption_error": "1 - corruption_accuracy. Not divided by AlexNet's errors as the paper does, "
        "because those exist for ImageNet only.",
        "mce": "On variants: the errors under each corruption, summed over the severities, divided by the original "
        "model's, averaged over the corruptions: the paper's mCE with the original model in AlexNet's place. 1 on a "
        "model that is as sensitive as the original.",
        "relative_corruption_error": "Clean accuracy - corruption_accuracy: what corruption costs.",
        "worst_corruption_accuracy": "Accuracy, over the severities, under the corruption where it is lowest; the "
        "interval is that corruption's own.",
        "accuracy_at_severity_S": "Accuracy averaged over the corruptions, at severity 1 to 5.",
        **{f"{name}_accuracy": f"Accuracy under {spoken(name)}, over the severities." for name in CORRUPTIONS},
    }
    cost: ClassVar[str] = "one forward pass per sample, corruption and severity (75 with all); twice that on variants"
    version: ClassVar[int] = 2

    corruptions: tuple[str, ...] = Field(
        default=tuple(CORRUPTIONS), min_length=1, description="Which of the 15; all when left out."
    )
    severities: tuple[int, ...] = Field(default=SEVERITIES, min_length=1, description="Which of 1 to 5.")
    limit: int | None = Field(default=None, ge=1, description="Examine at most so many samples, evenly spaced.")
    batch_size: int | None = Field(default=None, ge=1, description="Images corrupted at a time; 256 if left out.")

    @field_validator("corruptions")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in CORRUPTIONS:
                raise ValueError(unknown("corruption", name, CORRUPTIONS))
        return tuple(name for name in CORRUPTIONS if name in names)

    @field_validator("severities")
    @classmethod
    def _one_to_five(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        if not set(severities) <= set(SEVERITIES):
            raise ValueError(f"severities are 1 to 5, not {', '.join(map(str, severities))}")
        return tuple(sorted(set(severities)))

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        images = Images.of(target, samples, self.limit)
        clean = images.logits(images.x, self.batch_size or context.batch_size)
        context.progress.start(self.title, len(images) * len(self.corruptions) * len(self.severities))
        subjects = _subjects(images)
        every = [
            [torch.stack([z.argmax(1) for z in self._logits(subjects, name, s, context)]) for s in self.severities]
            for name in self.corruptions
        ]
        predictions = torch.stack([torch.stack(row) for row in every]).movedim(2, 0)
        measured = self._measured(clean.argmax(1), images.y, predictions, context.seed)
        metrics = tuple(measured.metrics())
        evidence, figures = self._shown(images, clean.argmax(1), predictions, measured, context)
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(by_name(metrics), measured),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}, exclude_none=True),
            metrics=metrics,
            findings=tuple(_findings(measured)),
            figures=figures,
            evidence=evidence,
            not_covered=self._not_covered(),
            references=self.references,
            standards=self.standards,
            forwards=len(images) * (1 + len(subjects) * len(self.corruptions) * len(self.severities)),
        )

    def _logits(self, subjects: Sequence[Images], name: str, severity: int, context: Context) -> list[Tensor]:
        """Each model's logits ``(n, k)`` of all samples under one corruption, made a batch at a time on the device."""
        images = subjects[0]
        size, device = self.batch_size or context.batch_size or 256, images.target.device
        streams = images.streams(context.seed)
        parts: list[list[Tensor]] = [[] for _ in subjects]
        for rows in torch.arange(len(images)).split(size):
            corrupted = corrupt(images.x[rows].to(device), name, severity, streams.select(rows).to(device))
            for subject, kept in zip(subjects, parts, strict=True):
                kept.append(subject.select(rows).logits(corrupted, None))
            context.progress.advance(len(rows))
        return [torch.cat(kept) for kept in parts]

    def _measured(self, clean: Tensor, y: Tensor, predictions: Tensor, seed: int) -> Measured:
        """From classes ``(n,)`` on clean images and ``(models, corruptions, severities, n)``, the original last."""
        right = (predictions == y).numpy()
        own, of_base = right[0], right[1] if len(right) > 1 else None
        return Measured((clean == y).numpy(), own, self.corruptions, self.severities, seed, of_base)

    def _shown(
        self, images: Images, clean: Tensor, predictions: Tensor, measured: Measured, context: Context
    ) -> tuple[tuple[Evidence, ...], tuple[Figure, ...]]:
        k = len(images.target.classes)
        tensors = {
            "ids": images.ids,
            "labels": images.y,
            "clean": compact(clean, k),
            "predictions": compact(predictions, k),
        }
        scores = context.evidence("predictions", tensors)
        row = torch.tensor([shown_sample(clean, images.y, predictions[0])])
        columns = self._pictures(images.select(row), context.seed)
        pictures = context.evidence("gallery", {**columns, "row": row}, name="gallery")
        figures = (
            *charts(measured, float(measured.clean.mean())),
            self._gallery(images, int(row), columns, pictures.path),
        )
        return (scores, pictures), figures

    def _pictures(self, one: Images, seed: int) -> dict[str, Tensor]:
        """Columns of the gallery ``(corruptions, c, h, w)``: the clean image, and each severity."""

        def column(severity: int) -> Tensor:
            return torch.cat([corrupt(one.x, name, severity, one.streams(seed)) for name in self.corruptions])

        clean = one.x.expand(len(self.corruptions), -1, -1, -1).contiguous()
        return {"clean": clean, **{f"severity_{severity}": column(severity) for severity in self.severities}}

    def _gallery(self, images: Images, row: int, columns: Mapping[str, Tensor], path: str) -> Gallery:
        repeated = images.select(torch.full((len(self.corruptions),), row))
        logits = [repeated.logits(column, None) for column in columns.values()]
        name = str(images.samples.names[row])
        return gallery(self.corruptions, self.severities, logits, images.samples.classes, name, path)

    def _same_pictures(self, images: Images, shown: Mapping[str, Tensor], seed: int) -> bool:
        row = shown["row"]
        if len(row) != 1 or not 0 <= int(row) < len(images):
            return False
        again = self._pictures(images.select(row), seed)
        # In the mean: other hardware rounds a value of a JPEG to the next step.
        return all(float((column - shown[key]).abs().mean()) < 1 / 255 for key, column in again.items())

    def _not_covered(self) -> tuple[str, ...]:
        differing = [f"{spoken(name)}: {APPROXIMATED[name]}" for name in self.corruptions if name in APPROXIMATED]
        left_out = [spoken(name) for name in CORRUPTIONS if name not in self.corruptions]
        return (
            *([f"Common corruptions left out: {', '.join(left_out)}."] if left_out else []),
            *([f"Corruptions that are approximated ({'; '.join(differing)})."] if differing else []),
            "Corruptions are simulated and come one at a time; real conditions mix them, and others exist.",
            "Corruption accuracies are comparable between models audited here, not with published ImageNet-C or "
            "CIFAR-10-C numbers.",
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        images = Images.of(target, samples, self.limit)
        recorded = context.read_evidence(result.evidence[0])
        same = torch.equal(recorded["ids"], images.ids) and torch.equal(recorded["labels"], images.y)
        yield Claim("the corruptions were applied to the audited samples and labels", same)
        if not same:
            return
        subjects = _subjects(images)
        clean, predictions = recorded["clean"].long(), recorded["predictions"].long()
        logits = images.logits(images.x, self.batch_size or context.batch_size)
        agree = _agreement(logits, clean)
        yield Claim(
            "the model predicts as recorded on clean images", bool(agree.all()), f"{agree.sum()} of {len(agree)}"
        )
        hits = 0
        for i, name in enumerate(self.corruptions):
            for j, severity in enumerate(self.severities):
                for logits, found in zip(self._logits(subjects, name, severity, context), predictions, strict=True):
                    hits += int(_agreement(logits, found[i, j]).sum())
        detail = f"{hits} of {predictions.numel()} ({percent(_AGREEING)} needed)"
        yield Claim(
            "the model predicts as recorded on corrupted images", hits >= _AGREEING * predictions.numel(), detail
        )
        shown = context.read_evidence(result.evidence[1])
        same = self._same_pictures(images, shown, context.seed)
        yield Claim("the gallery shows a sample of the data under these corruptions", same)
        for metric in self._measured(clean, images.y, predictions, context.seed).metrics():
            yield _same_value(metric, result.metric(metric.name))


def _subjects(images: Images) -> tuple[Images, ...]:
    """The model and, for a variant, the original, on the same images."""
    base = images.target.base
    return (images,) if base is None else (images, replace(images, target=base))


def _agreement(logits: Tensor, recorded: Tensor) -> Tensor:
    """Bool ``(n,)``: whether logits ``(n, k)`` predict the recorded classes, near ties aside."""
    one_hot = functional.one_hot(recorded, logits.shape[1])
    return torch.from_numpy(same_predictions(logits, one_hot, rounding=1e-3))


def _same_value(again: Metric, metric: Metric | None) -> Claim:
    what = f"{again.name} follows from the recorded predictions"
    value = None if metric is None else metric.value
    same = value is not None and again.value is not None and abs(value - again.value) <= 1e-9
    return Claim(what, same, f"{value}, recomputed {again.value}")


def _summary(metrics: Mapping[str, Metric], measured: Measured) -> str:
    overall, worst = metrics["corruption_accuracy"], metrics["worst_corruption_accuracy"]
    assert overall.value is not None and overall.ci_low is not None and overall.ci_high is not None  # noqa: PT018
    assert worst.value is not None
    return (
        f"The model is right on {percent(float(measured.clean.mean()))} of {measured.n} clean images and on "
        f"{percent(overall.value)} (95 % interval {percent(overall.ci_low)} to {percent(overall.ci_high)}) of their "
        f"corrupted versions. The worst corruption is {spoken(measured.worst())}, with {percent(worst.value)}."
    )


def _findings(measured: Measured) -> Iterator[Finding]:
    clean = float(measured.clean.mean())
    if clean == 0:
        return
    lost = (clean - float(measured.right.mean())) / clean
    yield Finding(
        severity=_severity(lost),
        title=f"Common corruptions cost {percent(max(lost, 0.0))} of the model's correct predictions",
        detail=f"Accuracy falls from {percent(clean)} on clean images to {percent(float(measured.right.mean()))} on "
        f"average over {len(measured.corruptions)} corruptions and {len(measured.severities)} severities.",
        remedy="Train with augmentations that resemble the conditions of use." if lost >= 0.1 else "",
        standards=standards.FAULTS,
    )
    severe = {
        name: own.value for name in measured.corruptions if (own := measured.by_corruption(name)).high < clean / 2
    }
    if severe:
        worst = sorted(severe, key=lambda name: severe[name])
        listed = ", ".join(f"{spoken(name)} ({percent(severe[name])})" for name in worst)
        yield Finding(
            severity="high" if severe[worst[0]] < clean / 4 else "medium",
            title=f"Under {spoken(worst[0])}"
            + (f" and {len(worst) - 1} other corruptions" if len(worst) > 1 else "")
            + " the model loses more than half of its accuracy",
            detail=f"Accuracy over the severities, with intervals wholly below half of the clean accuracy: {listed}.",
            remedy="Add these corruptions to the training data, or keep such images away from the model.",
            standards=standards.FAULTS,
        )


def _severity(lost: float) -> Severity:
    for least, level in _LOSSES:
        if lost >= least:
            return level
    return "info"
