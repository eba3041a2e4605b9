"""Charts and tables of a membership attack."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...attacks.statistics import rate_intervals
from ...privacy.membership.roc import roc
from ...reports.record import Chart, Figure, Line, Table
from .membership_exposure import STEADY, Exposure
from .metrics import percent

_EXPOSED = 10
_POINTS = 200


def figures(exposure: Exposure, classes: tuple[str, ...], kind: str) -> Iterator[Figure]:
    yield _roc_chart(exposure)
    yield _rates(exposure)
    yield _distributions(exposure, kind)
    yield _by_class(exposure, classes)
    yield _most_exposed(exposure, classes, kind)


def _roc_chart(exposure: Exposure) -> Chart:
    shown = np.flatnonzero((exposure.roc.fpr > 0) & (exposure.roc.tpr > 0))
    if len(shown) > _POINTS:  # evenly spaced on the log axis
        wanted = np.geomspace(exposure.roc.fpr[shown[0]], 1, _POINTS)
        shown = np.unique(shown[np.searchsorted(exposure.roc.fpr[shown], wanted).clip(max=len(shown) - 1)])
    tpr = exposure.roc.tpr[shown]
    low, high = rate_intervals(np.round(tpr * len(exposure.members)), len(exposure.members))
    least = 1 / max(len(exposure.members), len(exposure.nonmembers))
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
                x=tuple(exposure.roc.fpr[shown].tolist()),
                y=tuple(tpr.tolist()),
                low=tuple(low.tolist()),
                high=tuple(high.tolist()),
            ),
        ),
    )


def _rates(exposure: Exposure) -> Table:
    """At each rate, how many non-members its threshold rests on, and how many it would take to trust it."""
    n = len(exposure.nonmembers)
    return Table(
        id="rates",
        title="Members found at low false alarm",
        caption=f"A rate is resolved from 1 / rate non-members on, and steady from {STEADY} / rate on; here are {n}. "
        "Intervals are exact (Clopper-Pearson), given the threshold.",
        columns=("false positive rate", "members found", "from", "to", "rate achieved", "resolved from", "steady from"),
        rows=tuple(
            (percent(fpr), at.value, at.low, at.high, at.fpr_achieved, math.ceil(1 / fpr), math.ceil(STEADY / fpr))
            for fpr, at in exposure.at_fpr.items()
        ),
    )


def _distributions(exposure: Exposure, kind: str, bins: int = 40) -> Chart:
    groups = (("members", exposure.members), ("non-members", exposure.nonmembers))
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


def _by_class(exposure: Exposure, classes: tuple[str, ...]) -> Table:
    found = exposure.at_fpr[max(exposure.fprs)]
    rows = []
    for c, label in enumerate(classes):
        own, other = exposure.members.y == c, exposure.nonmembers.y == c
        both = own.any() and other.any()
        area = roc(exposure.members.scores[own], exposure.nonmembers.scores[other]).auc if both else None
        share = float((exposure.members.scores[own] >= found.threshold).mean()) if own.any() else None
        seen = float(exposure.members.correct[own].mean()) if own.any() else None
        unseen = float(exposure.nonmembers.correct[other].mean()) if other.any() else None
        rows.append((label, int(own.sum()), int(other.sum()), area, share, seen, unseen))
    return Table(
        id="by_class",
        title="Exposure by class",
        caption=f"Members found: by one threshold for all, at {percent(max(exposure.fprs))} false positives.",
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


def _most_exposed(exposure: Exposure, classes: tuple[str, ...], kind: str) -> Table:
    members, others = exposure.members, np.sort(exposure.nonmembers.scores)
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
