"""The scores of the attribution check: what they mean, and their means with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...attacks.statistics import bootstrap_sums, percentile_interval
from ...reports.record import Metric
from .methods import LABELS, METHODS, Method


@dataclass(frozen=True, slots=True)
class Score:
    """One score of an attribution method."""

    label: str
    meaning: str
    higher_is_better: bool | None
    unit: str = ""


SCORES: dict[str, Score] = {
    "deletion_auc": Score(
        "Deletion AUC",
        "Mean probability of the predicted class while pixels are replaced by the baseline, most relevant first.",
        False,
    ),
    "insertion_auc": Score(
        "Insertion AUC",
        "Mean probability of the predicted class while pixels are put onto the baseline, most relevant first.",
        True,
    ),
    "infidelity": Score(
        "Infidelity",
        "Share of the effect of removing random squares that the attributions do not predict (Captum, 0 to 1).",
        False,
    ),
    "sensitivity_max": Score(
        "Max sensitivity",
        "Largest relative change of the attributions under small random noise (Captum).",
        False,
    ),
    "top_overlap_attacked": Score(
        "Top-pixel overlap, attacked",
        "Intersection over union of the most relevant pixels before and after the attack.",
        True,
    ),
    "top_overlap_noise": Score(
        "Top-pixel overlap, noise",
        "The same after random noise as large as the attack.",
        True,
    ),
    "rank_correlation_attacked": Score(
        "Rank correlation, attacked",
        "Spearman correlation of all pixels' relevance before and after the attack.",
        True,
    ),
    "randomized_similarity": Score(
        "Similarity after randomizing",
        "Spearman correlation with the map of the same network with random weights: 0 when the map shows what was "
        "learned.",
        False,
    ),
    "sparseness": Score("Sparseness", "Gini index of the absolute relevance: near 1 when few pixels hold it.", None),
    "border_share": Score(
        "Share at the border", "Share of the absolute relevance in the outer tenth of the image on each side.", None
    ),
    "completeness_gap": Score(
        "Completeness gap",
        "How far the attributions' sum is from the change of the logit between baseline and input.",
        False,
        "logits",
    ),
}
GAINS: dict[str, tuple[str, str, str]] = {
    "deletion_gain": ("deletion_auc", "Deletion gain over random", "Random control's deletion AUC minus the method's."),
    "insertion_gain": (
        "insertion_auc",
        "Insertion gain over random",
        "The method's insertion AUC minus the random control's.",
    ),
}


def descriptions() -> dict[str, str]:
    """What each metric of each method means, by name; a gate that names another is a spelling mistake."""
    return {name: meaning for method in METHODS for name, meaning in _described(method)}


def _described(method: Method) -> Iterator[tuple[str, str]]:
    for name, score in SCORES.items():
        if name == "completeness_gap":
            if method == "integrated_gradients":
                yield f"{method}_{name}", score.meaning
            continue
        yield f"{method}_{name}", f"{LABELS[method]}: {score.meaning}"
        yield f"{method}_{name}_random", f"The random control's value of {method}_{name}."
    for name, (_, _, meaning) in GAINS.items():
        yield f"{method}_{name}", f"{LABELS[method]}: {meaning} Above 0 is better."


def metrics_of(method: Method, own: Mapping[str, Tensor], control: Mapping[str, Tensor], seed: int) -> Iterator[Metric]:
    """Means of per-sample scores ``(n,)`` of a method and its control, and paired differences, with intervals."""
    title = LABELS[method]
    for name, values in own.items():
        score = SCORES[name]
        label = f"{title}: {score.label}"
        yield mean_metric(f"{method}_{name}", values, label, score.higher_is_better, seed, score.unit)
        if name in control:
            label += ", random control"
            yield mean_metric(f"{method}_{name}_random", control[name], label, None, seed, score.unit)
    for name, (of, label, _) in GAINS.items():
        difference = control[of] - own[of] if of == "deletion_auc" else own[of] - control[of]
        yield mean_metric(f"{method}_{name}", difference, f"{title}: {label}", True, seed)


def mean_metric(
    name: str, values: Tensor, label: str, higher_is_better: bool | None, seed: int, unit: str = ""
) -> Metric:
    """Mean of the defined ``values`` ``(n,)`` with a bootstrap interval; no interval below two, no value below one."""
    defined = values[~values.isnan()].double()
    n = len(defined)
    if n == 0:
        return Metric(name=name, value=None, n=0, label=label, unit=unit, higher_is_better=higher_is_better)
    low, high = mean_interval(defined[:, None], seed) if n > 1 else (None, None)
    return Metric(
        name=name,
        value=float(defined.mean()),
        ci_low=None if low is None else low[0],
        ci_high=None if high is None else high[0],
        n=n,
        unit=unit,
        higher_is_better=higher_is_better,
        label=label,
        method="bootstrap" if n > 1 else "",
    )


def mean_interval(values: Tensor, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Percentile bootstrap intervals of the column means of ``values`` ``(n, m)``: lower and upper ends ``(m,)``."""
    means = bootstrap_sums(np.asarray(values, dtype=np.float64), seed=seed) / len(values)
    ends = [percentile_interval(column) for column in means.T]
    return tuple(low for low, _ in ends), tuple(high for _, high in ends)
