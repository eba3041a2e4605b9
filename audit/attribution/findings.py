"""What a reader must know about explanations that cannot be believed, and the sentences of the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...reports.record import Finding, Metric
from .methods import LABELS, Method

STANDARDS = ("NIST AI 100-1 MEASURE 2.9", "EU AI Act Art. 13(3)(b)")
"""The AI system is explained and its output interpreted; deployers are told what helps to explain its output."""
_ATTACKED = ("NISTAML.022", "EU AI Act Art. 15(5)")

_SIMILAR = 0.5  # rank correlation with a network of random weights above which a map says little of what was learned
_SHIFT = 0.5  # attacked overlap below this share of the overlap under noise of the same size
_FRAME = 1.5  # times the share of the area that the frame has
_GAP = 0.05  # of the mean change of the logit


def findings(
    methods: Sequence[Method], metrics: Mapping[str, Metric], frame_area: float, logit_change: float
) -> Iterator[Finding]:
    """Findings on all methods; ``frame_area`` is the border's share of the image, ``logit_change`` a mean in logits."""
    for method in methods:
        own = {name.removeprefix(f"{method}_"): m for name, m in metrics.items() if name.startswith(f"{method}_")}
        title = LABELS[method]
        yield from _not_better_than_random(title, own["deletion_gain"])
        yield from _untrained(title, own["randomized_similarity"])
        yield from _shift(title, own["top_overlap_attacked"], own["top_overlap_noise"])
        yield from _frame(title, own["border_share"], frame_area)
        yield from _incomplete(title, own.get("completeness_gap"), logit_change)


def _not_better_than_random(title: str, gain: Metric) -> Iterator[Finding]:
    if gain.value is None or gain.ci_low is None or gain.ci_high is None or gain.ci_low > 0:
        return
    worse = gain.ci_high < 0
    yield Finding(
        severity="medium",
        title=f"{title} is {'worse' if worse else 'no better'} than random at naming the pixels that matter",
        detail=f"Deleting pixels in its order lowers the probability by {gain.value:+.3f} more than random order does "
        f"(95 % interval {gain.ci_low:+.3f} to {gain.ci_high:+.3f}, n = {gain.n}).",
        remedy="Do not base decisions on these maps; try another method or baseline, or more samples.",
        standards=STANDARDS,
    )


def _untrained(title: str, similarity: Metric) -> Iterator[Finding]:
    if similarity.value is None or similarity.ci_low is None or similarity.ci_low <= _SIMILAR:
        return
    yield Finding(
        severity="medium",
        title=f"{title} hardly depends on what the model learned",
        detail=f"With random weights the maps keep a rank correlation of {similarity.value:.2f}: they mostly show the "
        "input or the architecture (arXiv 1810.03292).",
        remedy="Prefer a method whose maps change when the weights do.",
        standards=STANDARDS,
    )


def _shift(title: str, attacked: Metric, noise: Metric) -> Iterator[Finding]:
    if attacked.value is None or attacked.ci_high is None or noise.value is None:
        return
    if attacked.ci_high >= _SHIFT * noise.value:
        return
    yield Finding(
        severity="medium",
        title=f"{title} points elsewhere after a small attack",
        detail=f"The most relevant pixels overlap by {attacked.value:.2f} before and after the attack; random noise of "
        f"the same size leaves {noise.value:.2f} (n = {attacked.n}).",
        remedy="Do not rely on explanations of inputs that an adversary can touch; adversarial training usually "
        "steadies them.",
        standards=(*_ATTACKED, *STANDARDS),
    )


def _frame(title: str, share: Metric, area: float) -> Iterator[Finding]:
    if share.value is None or share.ci_low is None or share.ci_low <= _FRAME * area:
        return
    yield Finding(
        severity="low",
        title="The model may be reading the border of the images",
        detail=f"{title} puts {share.value:.0%} of its relevance into the outer tenth of the image, which is "
        f"{area:.0%} of the area: a hint of a shortcut (frame, watermark, background).",
        remedy="Look at the maps; test on images with the border cropped or replaced.",
        standards=STANDARDS,
    )


def _incomplete(title: str, gap: Metric | None, logit_change: float) -> Iterator[Finding]:
    if gap is None or gap.value is None or gap.value <= _GAP * logit_change:
        return
    yield Finding(
        severity="low",
        title=f"{title} was computed with too few steps",
        detail=f"Its sums miss the change of the logit by {gap.value:.3g} on average, where the change itself is "
        f"{logit_change:.3g}.",
        remedy="Raise steps.",
        standards=STANDARDS,
    )


def summary(methods: Sequence[Method], metrics: Mapping[str, Metric], threat: str) -> str:
    """Two or three plain sentences."""
    better: list[Method] = [m for m in methods if (metrics[f"{m}_deletion_gain"].ci_low or 0) > 0]
    if better:
        best: Method = min(better, key=lambda m: metrics[f"{m}_deletion_auc"].value or 0.0)
        own, control = metrics[f"{best}_deletion_auc"], metrics[f"{best}_deletion_auc_random"]
        text = (
            f"{LABELS[best]} names pixels that matter: deleting them in its order leaves a mean probability of "
            f"{own.value:.2f}, in random order {control.value:.2f}."
        )
    else:
        best = methods[0]
        text = "No method names the pixels that matter better than random noise does."
    failed = [LABELS[m] for m in methods if m not in better]
    if better and failed:
        text += f" Not shown better than random: {', '.join(failed)}."
    attacked, noise = metrics[f"{best}_top_overlap_attacked"], metrics[f"{best}_top_overlap_noise"]
    if attacked.value is not None and noise.value is not None:
        text += (
            f" After an attack ({threat}) its most relevant pixels overlap by {attacked.value:.2f} with those before; "
            f"after random noise of the same size by {noise.value:.2f}."
        )
    return text
