"""How good the model is on clean data, and how far its confidence can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from ...reports.record import Metric, Result
from ..samples import Samples
from ..target import Access, Target
from . import standards
from .base import Check, Claim, Context
from .classification import Floats
from .metrics import by_name, percent
from .outputs import all_logits, same_predictions
from .performance_figures import figures
from .performance_findings import findings, warnings
from .performance_measures import Measured


class Performance(Check):
    """Accuracy, ranking, probabilistic and calibration measures, overall and by class."""

    name: ClassVar[str] = "performance"
    title: ClassVar[str] = "Performance on clean data"
    question: ClassVar[str] = "How often is the model right, on which classes is it not, and is its confidence honest?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    references: ClassVar[tuple[str, ...]] = (
        "Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599",
        "Brier, Verification of Forecasts Expressed in Terms of Probability, 1950",
        "DeLong, DeLong and Clarke-Pearson, Comparing the Areas under Correlated ROC Curves, 1988",
        "Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927",
    )
    standards: ClassVar[tuple[str, ...]] = standards.ACCURACY
    metrics: ClassVar[Mapping[str, str]] = {
        "accuracy": "Share of samples classified as labelled.",
        "balanced_accuracy": "Mean of the classes' recalls: accuracy as if every class were equally frequent.",
        "top_K_accuracy": "Share of samples whose label is among the K highest logits (K = 2, 3, 5).",
        "precision_macro": "Mean over classes of the share of predictions of the class that are right.",
        "recall_macro": "Mean over classes of the share of the class that is found.",
        "f1_macro": "Mean over classes of the harmonic mean of precision and recall.",
        "precision_weighted": "Precision averaged over classes by their number of samples.",
        "recall_weighted": "Recall averaged over classes by their number of samples; equals accuracy.",
        "f1_weighted": "F1 averaged over classes by their number of samples.",
        "worst_class_recall": "Recall of the class that is found least often.",
        "roc_auc_ovr": "Mean over classes of the one-vs-rest area under the ROC curve.",
        "log_loss": "Mean negative log probability (nats) of the label.",
        "brier": "Mean squared distance of the probabilities from the one-hot label, summed over classes: 0 to 2.",
        "ece": "Expected calibration error: mean gap of confidence and accuracy over equal-width bins of confidence.",
    }
    cost: ClassVar[str] = "one forward pass per sample"

    bins: int = Field(default=15, ge=2, le=100, description="Equal-width confidence bins of the calibration error.")
    resamples: int = Field(default=1000, ge=100, description="Bootstrap resamples behind each interval.")

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        context.progress.start(self.title, len(samples))
        logits = all_logits(target, samples, context.batch_size, context.progress)
        measured = self._measured(logits.numpy(), target, samples, context.seed)
        tensors = {
            "logits": logits,
            "labels": torch.from_numpy(samples.labels),
            "ids": torch.from_numpy(samples.ids),
        }
        metrics = measured.metrics
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(by_name(metrics)),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(findings(measured)),
            figures=tuple(figures(measured)),
            evidence=(context.evidence("scores", tensors),),
            warnings=tuple(warnings(measured, len(samples.classes))),
            not_covered=(
                "Data that differ from the audited samples: other sources, later dates, rarer conditions.",
                "Wrong labels in the audited samples count as errors of the model.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=len(samples),
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        recorded = context.read_evidence(result.evidence[0])
        same_data = np.array_equal(recorded["ids"].numpy(), samples.ids) and np.array_equal(
            recorded["labels"].numpy(), samples.labels
        )
        yield Claim("the scores belong to the audited samples and labels", same_data)
        if not same_data:
            return
        agree = same_predictions(all_logits(target, samples, context.batch_size), recorded["logits"])
        yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)} samples")
        again = by_name(self._measured(recorded["logits"].numpy(), target, samples, context.seed).metrics)
        for metric in result.metrics:
            yield _same_value(metric, again.get(metric.name))

    def _measured(self, logits: Floats, target: Target, samples: Samples, seed: int) -> Measured:
        classes = (*samples.classes, *target.classes[len(samples.classes) :])  # a vote may have one that is no class
        return Measured(logits, samples.labels, classes, self.bins, self.resamples, seed)


def _same_value(metric: Metric, again: Metric | None) -> Claim:
    what = f"{metric.name} follows from the recorded scores"
    if again is None or (metric.value is None) != (again.value is None):
        return Claim(what, False, "it does not")
    if metric.value is None or again.value is None:
        return Claim(what, True, "undefined")
    return Claim(what, abs(metric.value - again.value) <= 1e-6, f"{metric.value:.6g}, recomputed {again.value:.6g}")


def _summary(metrics: Mapping[str, Metric]) -> str:
    accuracy, ece = metrics["accuracy"], metrics["ece"]
    assert accuracy.value is not None and accuracy.ci_low is not None and accuracy.ci_high is not None  # noqa: PT018
    text = (
        f"The model is right on {percent(accuracy.value)} of {accuracy.n} clean samples "
        f"(95 % interval {percent(accuracy.ci_low)} to {percent(accuracy.ci_high)})."
    )
    if ece.value is not None:
        text += f" Its confidence is off by {percent(ece.value)} on average."
    return text
