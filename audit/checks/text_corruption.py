"""How accuracy falls when texts arrive damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from ...attacks.statistics import bootstrap_sums, percentile_interval, rate_interval
from ...attacks.text.noise import NOISES, SEVERITIES, corrupted
from ...attacks.text.victim import Victim
from ...reports.record import Chart, Figure, Finding, Line, Metric, Result, Table
from .. import registry
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .images import compact
from .metrics import estimate, percent, rate
from .text_findings import severity
from .text_inputs import Texts


class TextCorruption(Check):
    """Accuracy under typing slips, scanning errors, lost case, punctuation and blanks, and cut texts.

    Six corruptions at three severities; the damage to a text depends on the seed and its id alone.
    """

    name: ClassVar[str] = "text_corruption"
    title: ClassVar[str] = "Damaged texts"
    question: ClassVar[str] = "Does it survive wear?"
    requires: ClassVar[frozenset[Access]] = frozenset({"labels"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    references: ClassVar[tuple[str, ...]] = (
        "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions, arXiv 1903.12261",
        "Belinkov and Bisk, Synthetic and Natural Noise Both Break Neural Machine Translation, arXiv 1711.02173",
    )
    standards: ClassVar[tuple[str, ...]] = standards.FAULTS
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of the texts classified as labelled as they are.",
        "corruption_accuracy": "Mean accuracy over corruptions and severities.",
        "worst_corruption_accuracy": "Accuracy under the corruption that costs most, over its severities.",
        "accuracy_NAME": "Accuracy under one corruption, over its severities: typos, ocr, case, punctuation, spacing, "
        "truncation.",
    }
    cost: ClassVar[str] = "18 forward passes per text"

    corruptions: tuple[str, ...] = Field(default=tuple(NOISES), min_length=1, description=f"Of {', '.join(NOISES)}.")
    limit: int | None = Field(default=500, ge=1, description="Examine at most so many texts, evenly spaced.")
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is damaged.")
    batch_size: int | None = Field(default=None, ge=1, description="Largest batch; 128 if left out.")

    @field_validator("corruptions")
    @classmethod
    def _exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in NOISES:
                raise ValueError(registry.unknown("corruption", name, NOISES))
        return tuple(dict.fromkeys(names))

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        texts = Texts.of(target, samples, self.limit, int(self.column == "second"))
        context.progress.start(self.title, len(texts) * (1 + len(self.corruptions) * len(SEVERITIES)))
        predictions = self._predictions(texts, context)
        k = len(target.classes)
        tensors = {
            "ids": torch.from_numpy(texts.samples.ids),
            "labels": texts.y,
            "predictions": compact(predictions, k),
        }
        measured = self._measured(predictions, texts.y)
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(measured),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}, exclude_none=True),
            metrics=tuple(measured.metrics(context.seed)),
            findings=tuple(_findings(measured)),
            figures=tuple(_figures(measured)),
            evidence=(context.evidence("predictions", tensors),),
            not_covered=(
                "Damage of other kinds and mixtures of several; slips and misreadings are of Latin script.",
                *[f"Damage left out: {name}." for name in NOISES if name not in self.corruptions],
            ),
            references=self.references,
            standards=self.standards,
            forwards=predictions.numel(),
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        texts = Texts.of(target, samples, self.limit, int(self.column == "second"))
        recorded = context.read_evidence(result.evidence[0])
        same = np.array_equal(recorded["ids"].numpy(), texts.samples.ids) and torch.equal(recorded["labels"], texts.y)
        yield Claim("the corruptions were applied to the audited texts and labels", same)
        if not same:
            return
        predictions = recorded["predictions"].long()
        agree = int((self._predictions(texts, context) == predictions).sum())
        # A near tie may go either way in a batch of another size.
        yield Claim("the model predicts as recorded", agree >= 0.999 * predictions.numel(), f"{agree}")
        again = {m.name: m for m in self._measured(predictions, texts.y).metrics(context.seed)}
        for metric in result.metrics:
            other = again.get(metric.name)
            ok = other is not None and abs((other.value or 0) - (metric.value or 0)) <= 1e-9
            yield Claim(f"{metric.name} follows from the recorded predictions", ok)

    def _predictions(self, texts: Texts, context: Context) -> Tensor:
        """Classes ``(1 + corruptions * severities, n)``, the clean texts first."""
        size, n = self.batch_size or context.batch_size or 128, len(texts)
        victim = Victim(texts.logits, texts.raws, texts.y.tolist(), column=texts.column, batch_size=size)
        clean = [texts.text(row) for row in range(n)]
        rounds = [clean]
        for name in self.corruptions:
            for level in SEVERITIES:
                keys = (f"{context.seed}:{sample}" for sample in texts.samples.ids.tolist())
                rounds.append([corrupted(text, name, level, key) for text, key in zip(clean, keys, strict=True)])
        found = []
        for own in rounds:
            logits = victim.outputs(range(n), own)
            if not found:
                texts.require_finite(logits)
            found.append(logits.argmax(1))
            context.progress.advance(n)
        return torch.stack(found)

    def _measured(self, predictions: Tensor, y: Tensor) -> DamagedTexts:
        right = (predictions == y).numpy()
        shape = (len(self.corruptions), len(SEVERITIES), len(y))
        return DamagedTexts(self.corruptions, right[0], right[1:].reshape(shape))


@dataclass(frozen=True, slots=True)
class DamagedTexts:
    """Whether the model was right: ``clean`` ``(n,)``, ``right`` ``(corruptions, severities, n)``."""

    names: tuple[str, ...]
    clean: NDArray[np.bool_]
    right: NDArray[np.bool_]

    @property
    def n(self) -> int:
        return len(self.clean)

    def by_name(self) -> dict[str, float]:
        """Accuracy under each corruption, over its severities."""
        return {name: float(own.mean()) for name, own in zip(self.names, self.right, strict=True)}

    def metrics(self, seed: int) -> Iterator[Metric]:
        label = "Accuracy on the texts as they are"
        yield rate("clean_accuracy", int(self.clean.sum()), self.n, label=label, higher_is_better=True)
        yield self._mean("corruption_accuracy", self.right.mean((0, 1)), "Accuracy on damaged texts", seed)
        values = self.by_name()
        worst = min(values, key=lambda name: values[name])
        own = self.right[self.names.index(worst)].mean(0)
        yield self._mean("worst_corruption_accuracy", own, f"Accuracy under the worst damage ({worst})", seed)
        for name, rows in zip(self.names, self.right, strict=True):
            yield self._mean(f"accuracy_{name}", rows.mean(0), f"Accuracy under {name}", seed)

    def _mean(self, name: str, values: NDArray[np.float64], label: str, seed: int) -> Metric:
        """A mean over texts, each with its share of right answers; the interval resamples texts."""
        means = bootstrap_sums(values[:, None], seed=seed)[:, 0] / self.n
        interval = percentile_interval(means)
        return estimate(
            name,
            float(values.mean()),
            interval,
            self.n,
            label=label,
            higher_is_better=True,
            method="bootstrap",
            unit="rate",
        )


def _summary(measured: DamagedTexts) -> str:
    values = measured.by_name()
    worst = min(values, key=lambda name: values[name])
    return (
        f"The model is right on {percent(float(measured.clean.mean()))} of {measured.n} texts as they are and on "
        f"{percent(float(measured.right.mean()))} of their damaged versions. The worst damage is {worst}, with "
        f"{percent(values[worst])}."
    )


def _findings(measured: DamagedTexts) -> Iterator[Finding]:
    clean = float(measured.clean.mean())
    if clean == 0:
        return
    for name, value in measured.by_name().items():
        lost = (clean - value) / clean
        level = severity(lost)
        if level != "info":
            yield Finding(
                severity=level,
                title=f"{name} costs {percent(lost)} of the correct predictions",
                detail=f"Accuracy falls from {percent(clean)} to {percent(value)} over {len(SEVERITIES)} severities.",
                remedy="Train with texts damaged in this way, or repair them before the model sees them.",
                standards=standards.FAULTS,
            )


def _figures(measured: DamagedTexts) -> Iterator[Figure]:
    lines, rows = [], []
    for name, own in zip(measured.names, measured.right, strict=True):
        hits = [int(level.sum()) for level in own]
        ends = [rate_interval(count, measured.n) for count in hits]
        clean = float(measured.clean.mean())
        values = [count / measured.n for count in hits]
        rows.append((name, *values))
        lines.append(
            Line(
                name=name,
                x=(0.0, *map(float, SEVERITIES)),
                y=(clean, *values),
                low=(clean, *(low for low, _ in ends)),
                high=(clean, *(high for _, high in ends)),
            )
        )
    yield Chart(
        id="by_severity",
        title="Accuracy against severity",
        caption="At severity 0: the texts as they are. Bands: 95 % intervals.",
        x_label="severity",
        y_label="accuracy",
        y_range=(0, 1),
        lines=tuple(lines),
    )
    columns = ("damage", *(f"severity {level}" for level in SEVERITIES))
    yield Table(id="accuracies", title="Accuracy by damage and severity", columns=columns, rows=tuple(rows))
