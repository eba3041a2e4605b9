"""All metrics of a classifier on labelled samples, from its logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...attacks.statistics import basic_interval, bootstrap_sums, percentile_interval
from ...reports.record import Metric
from .classification import (
    Calibration,
    ClassCounts,
    Floats,
    Ints,
    brier,
    calibration,
    class_counts,
    confusion,
    log_probabilities,
    macro_auc,
    rank_of_label,
    resampled_counts,
)
from .metrics import estimate, rate

_AVERAGES = {
    "precision_macro": "Precision, macro",
    "recall_macro": "Recall, macro",
    "f1_macro": "F1, macro",
    "precision_weighted": "Precision, weighted",
    "recall_weighted": "Recall, weighted",
    "f1_weighted": "F1, weighted",
}


@dataclass(frozen=True)
class Measured:
    """Logits ``(n, k)`` and labels ``(n,)`` with everything that follows from them."""

    logits: Floats
    y: Ints
    classes: tuple[str, ...]
    bins: int
    resamples: int
    seed: int

    @property
    def n(self) -> int:
        return len(self.y)

    @cached_property
    def prediction(self) -> Ints:
        return self.logits.argmax(1)

    @cached_property
    def log_p(self) -> Floats:
        return log_probabilities(self.logits)

    @cached_property
    def table(self) -> Ints:
        return confusion(self.y, self.prediction, len(self.classes))

    @cached_property
    def counts(self) -> ClassCounts:
        return class_counts(self.table)

    @cached_property
    def calibration(self) -> Calibration:
        return calibration(np.exp(self.log_p.max(1)), self.prediction == self.y, self.bins)

    @cached_property
    def present(self) -> Ints:
        return np.flatnonzero(self.counts.support)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        return (*self._rates(), *self._averages(), *self._probabilistic())

    def _rates(self) -> Iterator[Metric]:
        hits = int((self.prediction == self.y).sum())
        yield rate("accuracy", hits, self.n, label="Accuracy", higher_is_better=True)
        rank = rank_of_label(self.logits, self.y)
        for k in (2, 3, 5):
            if k < len(self.classes):
                found = int((rank < k).sum())
                yield rate(f"top_{k}_accuracy", found, self.n, label=f"Top-{k} accuracy", higher_is_better=True)
        worst = self.present[self.counts.recall[self.present].argmin()]
        yield rate(
            "worst_class_recall",
            int(self.counts.hits[worst]),
            int(self.counts.support[worst]),
            label=f"Recall of the worst class ({self.classes[worst]})",
            higher_is_better=True,
        )

    def _averages(self) -> Iterator[Metric]:
        values = self.counts.averages()
        resampled = resampled_counts(self.table, self.resamples, self.seed).averages()
        for name, label in {"balanced_accuracy": "Balanced accuracy", **_AVERAGES}.items():
            source = "recall_macro" if name == "balanced_accuracy" else name
            yield estimate(
                name,
                float(values[source]),
                percentile_interval(resampled[source]),
                self.n,
                label=label,
                higher_is_better=True,
                method="bootstrap",
                unit="rate",
            )

    def _probabilistic(self) -> Iterator[Metric]:
        auc, interval = macro_auc(np.exp(self.log_p), self.y)
        label = "ROC AUC, one-vs-rest, macro"
        yield estimate(
            "roc_auc_ovr", auc, interval, self.n, label=label, higher_is_better=True, method="delong", unit="auc"
        )
        loss, score = -self.log_p[np.arange(self.n), self.y], brier(np.exp(self.log_p), self.y)
        sums = bootstrap_sums(np.column_stack([loss, score, self.calibration.gaps]), self.resamples, self.seed) / self.n
        intervals = percentile_interval(sums[:, 0]), percentile_interval(sums[:, 1])
        for name, values, interval, label, unit in (
            ("log_loss", loss, intervals[0], "Log loss", "nats"),
            ("brier", score, intervals[1], "Brier score (0 to 2)", ""),
        ):
            yield estimate(
                name,
                float(values.mean()),
                interval,
                self.n,
                label=label,
                higher_is_better=False,
                method="bootstrap",
                unit=unit,
            )
        ece = self.calibration.ece
        yield estimate(
            "ece",
            ece,
            basic_interval(np.abs(sums[:, 2:]).sum(1), ece, (0.0, 1.0)),
            self.n,
            label=f"Expected calibration error ({self.bins} bins)",
            higher_is_better=False,
            method="bootstrap",
            unit="rate",
        )
