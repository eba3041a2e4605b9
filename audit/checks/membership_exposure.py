"""Everything that scores of members and non-members show: metrics, charts, tables, findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...attacks.statistics import auc_interval, rate_interval, rate_intervals, sum_interval
from ...privacy.membership.roc import Estimate, Roc, TPRAtFPR, advantage, balanced_accuracy, roc, tpr_at_fpr
from ...reports.record import Chart, Figure, Finding, Line, Metric, Table
from . import standards
from .metrics import by_name, estimate, percent, rate

_EXPOSED = 10
_FEW = 20
_POINTS = 200


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
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(self._metrics())

    def _metrics(self) -> Iterator[Metric]:
        members, nonmembers = self.members, self.nonmembers
        n = len(members) + len(nonmembers)
        for fpr, found in self.at_fpr.items():
            yield self._tpr(fpr, found)
        interval = auc_interval(members.scores, nonmembers.scores)
        yield estimate(
            "auc",
            self.roc.auc,
            interval,
            n,
            label="AUC (0.5: nothing leaks)",
            higher_is_better=False,
            method="delong",
            unit="auc",
        )
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

    def warnings(self) -> Iterator[str]:
        n = len(self.nonmembers)
        for fpr in self.fprs:
            allowed = int(np.floor(fpr * n + 1e-9))
            if allowed == 0:
                yield (
                    f"TPR at {percent(fpr)} FPR cannot be resolved: it needs at least {int(np.ceil(1 / fpr))} "
                    f"non-members, there are {n}. It is given for no false positive at all, and may be too low."
                )
            elif allowed < _FEW:
                yield (
                    f"TPR at {percent(fpr)} FPR rests on the {allowed} highest of {n} non-members: the threshold is "
                    "itself uncertain, and the interval does not include that."
                )

    def findings(self) -> Iterator[Finding]:
        auc = by_name(self.metrics)["auc"]
        low = auc.ci_low if auc.ci_low is not None else 0.5
        strict = self._sharpest()
        if strict is not None:
            fpr, found = strict
            yield Finding(
                severity="high" if found.low >= 10 * fpr else "medium",
                title="Some training records can be recognised with near certainty",
                detail=f"At {percent(found.fpr_achieved)} false positives, {percent(found.value)} of the members are "
                f"found (at least {percent(found.low)}); by chance it would be {percent(fpr)}.",
                remedy="Train with differential privacy (see the dp_sgd variant), or regularise; remove duplicates.",
                standards=standards.MEMBERSHIP,
            )
        elif low > 0.5:
            yield Finding(
                severity="medium" if low > 0.6 else "low",
                title="Members and non-members behave differently on average",
                detail=f"AUC {auc.value:.3f} (at least {low:.3f}; 0.5 is chance), though no record stands out at a low "
                "false positive rate.",
                remedy="Regularise or stop earlier: the gap between training and test accuracy is what gives it away.",
                standards=standards.MEMBERSHIP,
            )
        else:
            yield Finding(
                severity="info",
                title="This attack finds no leak of membership",
                detail="Its AUC does not differ from chance. That is no proof of privacy: attacks with shadow models "
                "find many times more (arXiv 2112.03570).",
                standards=standards.MEMBERSHIP,
            )

    def _sharpest(self) -> tuple[float, TPRAtFPR] | None:
        """The lowest resolvable rate at which surely more than three times as many members are found as by chance."""
        for fpr in sorted(self.fprs):
            resolvable = fpr * len(self.nonmembers) >= 1
            if resolvable and self.at_fpr[fpr].low > 3 * fpr:
                return fpr, self.at_fpr[fpr]
        return None

    def figures(self, classes: tuple[str, ...], kind: str) -> Iterator[Figure]:
        yield self._roc_chart()
        yield self._distributions(kind)
        yield self._by_class(classes)
        yield self._most_exposed(classes, kind)

    def _roc_chart(self) -> Chart:
        shown = np.flatnonzero((self.roc.fpr > 0) & (self.roc.tpr > 0))
        if len(shown) > _POINTS:  # evenly spaced on the log axis
            wanted = np.geomspace(self.roc.fpr[shown[0]], 1, _POINTS)
            shown = np.unique(shown[np.searchsorted(self.roc.fpr[shown], wanted).clip(max=len(shown) - 1)])
        tpr = self.roc.tpr[shown]
        low, high = rate_intervals(np.round(tpr * len(self.members)), len(self.members))
        least = 1 / max(len(self.members), len(self.nonmembers))
        return Chart(
            id="roc",
            title="Members found against false alarms",
            caption="Both axes are logarithmic: what matters is the left, where few non-members are accused. "
            "On the diagonal the attack guesses.",
            x_label="false positive rate",
            y_label="true positive rate",
            x_scale="log",
            y_scale="log",
            x_range=(least, 1),
            y_range=(least, 1),
            diagonal=True,
            lines=(
                Line(
                    name="attack",
                    x=tuple(self.roc.fpr[shown].tolist()),
                    y=tuple(tpr.tolist()),
                    low=tuple(low.tolist()),
                    high=tuple(high.tolist()),
                ),
            ),
        )

    def _distributions(self, kind: str, bins: int = 40) -> Chart:
        groups = (("members", self.members), ("non-members", self.nonmembers))
        everything = np.concatenate([group.scores for _, group in groups])
        low, high = np.quantile(everything, [0.01, 1.0])
        edges = np.linspace(low, max(high, low + 1e-9), bins + 1)
        middle = tuple(((edges[1:] + edges[:-1]) / 2).tolist())
        lines = []
        for name, group in groups:
            counts, _ = np.histogram(group.scores.clip(low, high), edges)
            lines.append(Line(name=name, x=middle, y=tuple((counts / len(group)).tolist())))
        return Chart(
            id="distributions",
            title="Scores of members and non-members",
            caption="Where the lines differ, membership shows. The lowest hundredth is drawn in the first bin.",
            style="step",
            x_label=f"score ({kind}), the higher the more like a member",
            y_label="share of records",
            lines=tuple(lines),
        )

    def _by_class(self, classes: tuple[str, ...]) -> Table:
        found = self.at_fpr[max(self.fprs)]
        rows = []
        for c, label in enumerate(classes):
            own, other = self.members.y == c, self.nonmembers.y == c
            both = own.any() and other.any()
            area = roc(self.members.scores[own], self.nonmembers.scores[other]).auc if both else None
            share = float((self.members.scores[own] >= found.threshold).mean()) if own.any() else None
            seen = float(self.members.correct[own].mean()) if own.any() else None
            unseen = float(self.nonmembers.correct[other].mean()) if other.any() else None
            rows.append((label, int(own.sum()), int(other.sum()), area, share, seen, unseen))
        return Table(
            id="by_class",
            title="Exposure by class",
            caption=f"Members found: by one threshold for all, at {percent(max(self.fprs))} false positives.",
            columns=(
                "class",
                "members",
                "non-members",
                "AUC",
                "members found",
                "accuracy on members",
                "accuracy on non-members",
            ),
            rows=tuple(rows),
        )

    def _most_exposed(self, classes: tuple[str, ...], kind: str) -> Table:
        members, others = self.members, np.sort(self.nonmembers.scores)
        order = np.argsort(-members.scores, kind="stable")[:_EXPOSED]
        above = 1 - np.searchsorted(others, members.scores[order], side="left") / len(others)
        return Table(
            id="most_exposed",
            title="Most exposed training records",
            caption="Those that the attack is surest of, and how many non-members score as high.",
            columns=("record", "class", f"score ({kind})", "non-members as high"),
            rows=tuple(
                (str(members.names[i]), classes[members.y[i]], float(members.scores[i]), float(share))
                for i, share in zip(order, above, strict=True)
            ),
        )


def rate_text(fpr: float) -> str:
    """``0.001``, never ``1e-03``: the name by which gates address the metric."""
    return np.format_float_positional(fpr, trim="-")


def _estimated(name: str, found: Estimate, n: int, label: str, method: str) -> Metric:
    return estimate(
        name, found.value, (found.low, found.high), n, label=label, higher_is_better=False, method=method, unit="rate"
    )
