"""What a reader must know about explanations that cannot be believed, and the sentences of the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...reports.record import Finding, Metric, Severity
from .methods import LABELS, Method

STANDARDS = ("NIST AI 100-1 MEASURE 2.9", "EU AI Act Art. 13(3)(b)")
"""The AI system is explained and its output interpreted; deployers are told what helps to explain its output."""
_ATTACKED = ("NISTAML.022", "EU AI Act Art. 15(5)")

_SIMILAR = 0.5  # rank correlation with a network of random weights above which a map says little of what was learned
_SHIFT = 0.5  # attacked overlap below this share of the overlap under noise of the same size
_FRAME = 1.5  # times the share of the area that the frame has
_GAP = 0.05  # of the mean change of the logit


@dataclass(frozen=True, slots=True)
class _Rule:
    """A finding that may concern several methods; ``applies`` gives the numbers for one, or None."""

    severity: Severity
    title: str
    detail: str
    remedy: str
    applies: Callable[[Mapping[str, Metric], float, float], str | None]
    standards: tuple[str, ...] = STANDARDS


def findings(
    methods: Sequence[Method], metrics: Mapping[str, Metric], frame_area: float, logit_change: float
) -> Iterator[Finding]:
    """One finding per kind; ``frame_area`` is the border's share of the image, ``logit_change`` a mean in logits."""
    for rule in _RULES:
        numbers: dict[Method, str] = {}
        for method in methods:
            own = {name.removeprefix(f"{method}_"): m for name, m in metrics.items() if name.startswith(f"{method}_")}
            found = rule.applies(own, frame_area, logit_change)
            if found is not None:
                numbers[method] = found
        if numbers:
            listed = "; ".join(f"{LABELS[method]}: {found}" for method, found in numbers.items())
            yield Finding(
                severity=rule.severity,
                title=rule.title.format(", ".join(LABELS[method] for method in numbers)),
                detail=f"{rule.detail} {listed}.",
                remedy=rule.remedy,
                standards=rule.standards,
            )


def _not_better_than_random(own: Mapping[str, Metric], _: float, __: float) -> str | None:
    gain = own["deletion_gain"]
    if gain.value is None or gain.ci_low is None or gain.ci_high is None or gain.ci_low > 0:
        return None
    worse = ", worse than random" if gain.ci_high < 0 else ""
    return f"{gain.value:+.3f} (95 % interval {gain.ci_low:+.3f} to {gain.ci_high:+.3f}, n = {gain.n}){worse}"


def _untrained(own: Mapping[str, Metric], _: float, __: float) -> str | None:
    similarity = own["randomized_similarity"]
    if similarity.value is None or similarity.ci_low is None or similarity.ci_low <= _SIMILAR:
        return None
    return f"{similarity.value:.2f}"


def _shift(own: Mapping[str, Metric], _: float, __: float) -> str | None:
    attacked, noise = own["top_overlap_attacked"], own["top_overlap_noise"]
    if attacked.value is None or attacked.ci_high is None or noise.value is None:
        return None
    if attacked.ci_high >= _SHIFT * noise.value:
        return None
    return f"{attacked.value:.2f}, after random noise of the same size {noise.value:.2f} (n = {attacked.n})"


def _frame(own: Mapping[str, Metric], area: float, _: float) -> str | None:
    share = own["border_share"]
    if share.value is None or share.ci_low is None or share.ci_low <= _FRAME * area:
        return None
    return f"{share.value:.0%} of the relevance on {area:.0%} of the area"


def _incomplete(own: Mapping[str, Metric], _: float, logit_change: float) -> str | None:
    gap = own.get("completeness_gap")
    if gap is None or gap.value is None or gap.value <= _GAP * logit_change:
        return None
    return f"{gap.value:.3g} on average, where the logit changes by {logit_change:.3g}"


_RULES = (
    _Rule(
        "medium",
        "No better than random at naming the pixels that matter: {}",
        "How much more of the probability goes when pixels are deleted in the method's order than in random order.",
        "Do not base decisions on these maps; try another method or baseline, or more samples.",
        _not_better_than_random,
    ),
    _Rule(
        "medium",
        "Explanations that hardly depend on what the model learned: {}",
        "Rank correlation with the maps of the same network with random weights; such maps mostly show the input or "
        "the architecture (arXiv 1810.03292).",
        "Prefer a method whose maps change when the weights do.",
        _untrained,
    ),
    _Rule(
        "medium",
        "Explanations point elsewhere after a small attack: {}",
        "Overlap of the most relevant pixels before and after the attack.",
        "Do not rely on explanations of inputs that an adversary can touch; adversarial training usually steadies "
        "them.",
        _shift,
        (*_ATTACKED, *STANDARDS),
    ),
    _Rule(
        "low",
        "The model may be reading the border of the images: {}",
        "A hint of a shortcut (frame, watermark, background): the outer tenth of the image on each side holds much "
        "of the relevance.",
        "Look at the maps; test on images with the border cropped or replaced.",
        _frame,
    ),
    _Rule(
        "low",
        "Computed with too few steps: {}",
        "The sum of the attributions should equal the change of the logit between baseline and input, and misses it.",
        "Raise steps.",
        _incomplete,
    ),
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
