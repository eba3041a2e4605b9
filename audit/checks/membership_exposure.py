"""All metrics of a membership attack, from the scores of members and non-members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...attacks.statistics import auc_interval, rate_interval, sum_interval
from ...privacy.membership.roc import Estimate, Roc, TPRAtFPR, advantage, balanced_accuracy, roc, tpr_at_fpr
from ...reports.record import Metric
from .metrics import estimate, percent, rate

STEADY = 20
"""So many non-members above a threshold fix it well enough."""


@dataclass(frozen=True, slots=True)
class Group:
    """Records of one side: scores ``(n,)``, labels ``(n,)``, whether classified correctly ``(n,)``, names."""

    scores: NDArray[np.float64]
    y: NDArray[np.int64]
    correct: NDArray[np.bool_]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Exposure:
    """Members, non-members, the false positive rates asked for, and what follows from them."""

    members: Group
    nonmembers: Group
    fprs: Sequence[float]
    seed: int

    @cached_property
    def roc(self) -> Roc:
        return roc(self.members.scores, self.nonmembers.scores)

    @cached_property
    def at_fpr(self) -> dict[float, TPRAtFPR]:
        return {fpr: tpr_at_fpr(self.members.scores, self.nonmembers.scores, fpr) for fpr in self.fprs}

    @cached_property
    def auc(self) -> Metric:
        interval = auc_interval(self.members.scores, self.nonmembers.scores)
        return estimate(
            "auc",
            self.roc.auc,
            interval,
            len(self.members) + len(self.nonmembers),
            label="AUC (0.5: nothing leaks)",
            higher_is_better=False,
            method="delong",
            unit="auc",
        )

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(self._metrics())

    def _metrics(self) -> Iterator[Metric]:
        members, nonmembers = self.members, self.nonmembers
        n = len(members) + len(nonmembers)
        for fpr, found in self.at_fpr.items():
            yield self._tpr(fpr, found)
        yield self.auc
        best = advantage(members.scores, nonmembers.scores, seed=self.seed)
        yield _estimated("advantage", best, n, "Membership advantage, largest TPR - FPR", "bootstrap")
        if min(len(members), len(nonmembers)) > 1:
            accuracy = balanced_accuracy(members.scores, nonmembers.scores)
            yield _estimated("balanced_accuracy", accuracy, n, "Balanced accuracy of the attack", "wilson (sum)")
        for name, group, label in (
            ("member_accuracy", members, "Accuracy of the model on members"),
            ("nonmember_accuracy", nonmembers, "Accuracy of the model on non-members"),
        ):
            yield rate(name, int(group.correct.sum()), len(group), label=label, higher_is_better=True)
        yield self._gap()

    def _gap(self) -> Metric:
        sides = self.members.correct, self.nonmembers.correct
        rates = [float(side.mean()) for side in sides]
        intervals = [rate_interval(int(side.sum()), len(side)) for side in sides]
        gap = Estimate(rates[0] - rates[1], *sum_interval((1, -1), rates, intervals))
        return _estimated("generalization_gap", gap, sum(map(len, sides)), "Generalisation gap", "wilson (sum)")

    def _tpr(self, fpr: float, found: TPRAtFPR) -> Metric:
        name, label = f"tpr_at_fpr_{rate_text(fpr)}", f"Members found at {percent(fpr)} false positives"
        return estimate(
            name,
            found.value,
            (found.low, found.high),
            len(self.members),
            label=label,
            higher_is_better=False,
            method="clopper-pearson",
            unit="rate",
        )


def rate_text(fpr: float) -> str:
    """``0.001``, never ``1e-03``: the name by which gates address the metric."""
    return np.format_float_positional(fpr, trim="-")


def _estimated(name: str, found: Estimate, n: int, label: str, method: str) -> Metric:
    return estimate(
        name, found.value, (found.low, found.high), n, label=label, higher_is_better=False, method=method, unit="rate"
    )
