"""A check of one's own: how often the model's answer stays the same when an image is seen in a mirror.

Install it beside auditorch (``pip install .`` in this folder) and write ``- mirror`` under ``checks`` in a spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from auditorch.attacks.statistics import rate_interval
from auditorch.audit.checks.base import Check, Claim, Context, encoded
from auditorch.audit.samples import Samples
from auditorch.audit.target import Access, Modality, Target
from auditorch.reports.record import Finding, Metric, Result, Table
from pydantic import Field
from torch import Tensor


class Mirror(Check):
    """Turns each image left to right and counts the samples whose predicted class stays the same."""

    name: ClassVar[str] = "mirror"
    title: ClassVar[str] = "Mirrored images"
    question: ClassVar[str] = "Does it survive wear?"  # one of the report's chapters, or a question of its own
    requires: ClassVar[frozenset[Access]] = frozenset({"labels"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    metrics: ClassVar[Mapping[str, str]] = {
        "consistency": "Share of samples whose predicted class is the same for the mirrored image.",
        "mirrored_accuracy": "Share of mirrored samples classified as labelled.",
    }
    cost: ClassVar[str] = "two forward passes per sample"
    version: ClassVar[int] = 1  # part of the cache's key: raise it whenever results may change

    upside_down: bool = Field(default=False, description="Mirror top to bottom as well.")

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        context.progress.start(self.title, 2)
        x, y = encoded(target, samples)
        before, after = self._predictions(target, x)
        context.progress.advance(2)
        ids = torch.from_numpy(samples.ids)
        # A tensor named like a metric, one number a sample, makes the metric comparable sample by sample.
        scores = {
            "ids": ids,
            "before": before,
            "after": after,
            "consistency": (before == after).long(),
            "mirrored_accuracy": (after == y).long(),
        }
        metrics = self._metrics(before, after, y)
        share = metrics[0].value or 0.0
        return Result(
            check=self.name,
            id=self.id,
            title=self.title,
            status="ok",
            summary=f"{100 * share:.1f} % of {len(y)} images get the same class as their mirror images.",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(_findings(share)),
            figures=(_by_class(before, after, y, samples.classes),),
            evidence=(context.evidence("scores", scores),),
            not_covered=("Other symmetries than mirroring.",),
            forwards=2 * len(y),
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        """What `auditorch verify` asks: does the model still say so, and do the numbers follow?"""
        recorded = context.read_evidence(result.evidence[0])
        x, y = encoded(target, samples)
        before, after = self._predictions(target, x)
        yield Claim("the model answers as recorded", torch.equal(before, recorded["before"]))
        yield Claim("the model answers mirror images as recorded", torch.equal(after, recorded["after"]))
        again = self._metrics(recorded["before"], recorded["after"], y)
        yield Claim("the shares follow from the answers", again == result.metrics)

    def _predictions(self, target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
        """Classes ``(n,)`` of images ``(n, c, h, w)`` and of their mirror images."""
        axes = (3, 2) if self.upside_down else (3,)
        with torch.no_grad():
            answers = [target.module(part.to(target.device)).argmax(1).cpu() for part in (x, x.flip(axes))]
        return answers[0], answers[1]

    def _metrics(self, before: Tensor, after: Tensor, y: Tensor) -> tuple[Metric, ...]:
        hits = {"consistency": int((before == after).sum()), "mirrored_accuracy": int((after == y).sum())}
        return tuple(_rate(name, count, len(y)) for name, count in hits.items())


def _rate(name: str, hits: int, n: int) -> Metric:
    low, high = rate_interval(hits, n)
    return Metric(
        name=name, value=hits / n, ci_low=low, ci_high=high, n=n, unit="rate", higher_is_better=True, method="wilson"
    )


def _findings(share: float) -> Iterator[Finding]:
    if share < 0.9:
        yield Finding(
            severity="medium",
            title="The model sees something else in a mirror",
            detail=f"{100 * (1 - share):.1f} % of the images change their class when they are mirrored.",
            remedy="Train with mirrored images, unless left and right matter to the task.",
        )


def _by_class(before: Tensor, after: Tensor, y: Tensor, classes: tuple[str, ...]) -> Table:
    rows = []
    for k, name in enumerate(classes):
        own = y == k
        rows.append((name, int(own.sum()), float((before == after)[own].double().mean()) if own.any() else None))
    return Table(id="by_class", title="By class", columns=("class", "samples", "consistency"), rows=tuple(rows))
