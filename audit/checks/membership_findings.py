"""What a reader must know about a membership attack, and how far its numbers carry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...attacks.statistics import rate_interval
from ...privacy.membership.roc import TPRAtFPR
from ...reports.record import Finding
from . import standards
from .membership_exposure import STEADY, Exposure
from .metrics import percent


def warnings(exposure: Exposure) -> Iterator[str]:
    n = len(exposure.nonmembers)
    for fpr in exposure.fprs:
        allowed = int(np.floor(fpr * n + 1e-9))
        if allowed == 0:
            yield (
                f"TPR at {percent(fpr)} FPR cannot be resolved: it needs at least {int(np.ceil(1 / fpr))} "
                f"non-members, there are {n}. It is given for no false positive at all, and may be too low."
            )
        elif allowed < STEADY:
            yield (
                f"TPR at {percent(fpr)} FPR rests on the {allowed} highest of {n} non-members: the threshold is "
                "itself uncertain, and the interval does not include that."
            )


def findings(exposure: Exposure, *, shadows: bool = False) -> Iterator[Finding]:
    auc = exposure.auc
    low = auc.ci_low if auc.ci_low is not None else 0.5
    strict = _sharpest(exposure)
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
            detail="Its AUC does not differ from chance. That is no proof of privacy: "
            + (
                "an attacker who knows more of how the model was trained finds more."
                if shadows
                else "attacks with shadow models find many times more (arXiv 2112.03570)."
            ),
            standards=standards.MEMBERSHIP,
        )


def _sharpest(exposure: Exposure) -> tuple[float, TPRAtFPR] | None:
    """The lowest rate at which surely more than three times as many members are found as by chance.

    Surely: also when the true false positive rate of the threshold, which a handful of non-members set, is at the
    upper end of its own interval.
    """
    n = len(exposure.nonmembers)
    for fpr in sorted(exposure.fprs):
        found = exposure.at_fpr[fpr]
        _, worst = rate_interval(round(found.fpr_achieved * n), n, method="exact")
        if fpr * n >= 1 and found.low > max(3 * fpr, worst):
            return fpr, found
    return None
