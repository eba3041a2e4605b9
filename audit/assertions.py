"""Assertions for tests: a model's robustness, privacy and accuracy on tensors, with the interval that they rest on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..attacks.attack import Attack, Model
from ..attacks.engine import evaluate
from ..attacks.models import attacking
from ..attacks.threat import Norm, Threat
from ..privacy.membership.roc import tpr_at_fpr
from ..privacy.membership.threshold import ScoreKind, membership_scores
from ..reports.record import Gate, Metric, Result, VariantRecord
from ..reports.writing import metric_text
from . import registry
from .checks.performance_measures import Measured as PerformanceMeasured
from .errors import DataError
from .gates import BASE, Confidence, evaluate_gate, parse_gate
from .invariance import Change, invariance
from .measured import Measured, share

Data = tuple[Any, Any]
"""Inputs ``(n, ...)`` and labels ``(n,)``: tensors, arrays or lists."""

_WORST = 5


def evasion(
    model: Model,
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    norm: Norm = "linf",
    eps: float | str = 8 / 255,
    attack: str | Attack = "auto",
    bounds: tuple[float, float] = (0.0, 1.0),
    batch_size: int | None = None,
    seed: int = 0,
) -> Measured:
    """Robust accuracy of ``model`` (inputs within ``bounds`` to logits ``(n, k)``) under an attack.

    Args:
        x: floats ``(n, ...)`` within ``bounds``.
        eps: radius in input units, also as ``"8/255"``.
        attack: a registered name, or an attack such as ``PGD(steps=40)``.
    """
    inputs, labels = _tensors(x, y)
    threat = Threat(norm, eps, bounds=bounds)  # pyright: ignore[reportArgumentType] (reads fractions)
    chosen: Attack = registry.load("attacks", attack)() if isinstance(attack, str) else attack
    outcome = evaluate(chosen, model, inputs, labels, threat, seed=seed, batch_size=batch_size)
    metric = share("robust_accuracy", int((~outcome.success).sum()), len(labels), higher_is_better=True)
    order = outcome.distance.masked_fill(~outcome.success, float("inf")).argsort(stable=True)
    broken = [int(i) for i in order[: min(_WORST, int(outcome.success.sum()))]]
    worst = tuple(_fooled(i, outcome.distance[i], outcome.correct[i], labels, outcome.adv_logits, norm) for i in broken)
    return Measured(metric, f"{type(chosen).__name__} within {norm} {threat.eps:.4g}", worst)


def accuracy(model: Model, x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, batch_size: int = 512) -> Measured:
    """Share of samples that ``model`` classifies as labelled."""
    inputs, labels = _tensors(x, y)
    found = _logits(model, inputs, batch_size)
    wrong = (found.argmax(1) != labels).nonzero().flatten()
    surest = wrong[found.softmax(1).amax(1)[wrong].argsort(descending=True, stable=True)][:_WORST]
    worst = tuple(f"sample {int(i)}: label {int(labels[i])}, predicted {int(found[i].argmax())}" for i in surest)
    return Measured(share("accuracy", len(labels) - len(wrong), len(labels), higher_is_better=True), "clean", worst)


def calibration_error(
    model: Model, x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, bins: int = 15, batch_size: int = 512
) -> Measured:
    """Expected calibration error of ``model``: how far its confidence is from its accuracy, on average (0..1)."""
    inputs, labels = _tensors(x, y)
    found = _logits(model, inputs, batch_size).numpy()
    measured = PerformanceMeasured(found, labels.numpy(), tuple(map(str, range(found.shape[1]))), bins, 1000, 0)
    metric = next(metric for metric in measured.metrics if metric.name == "ece")
    return Measured(metric, f"{bins} bins of confidence", tuple(_gaps(measured)))


def _gaps(measured: PerformanceMeasured) -> Iterator[str]:
    """The bins in which confidence and accuracy lie furthest apart, weighted by their samples."""
    found = measured.calibration
    order = np.argsort(-np.abs(found.gaps.sum(0)), kind="stable")[:_WORST]
    for bin_ in order[found.counts[order] > 0]:
        low, high = found.edges[bin_], found.edges[bin_ + 1]
        right = found.hits[bin_] / found.counts[bin_]
        yield (
            f"confidence {low:.2f} to {high:.2f}: {found.counts[bin_]} samples, "
            f"mean confidence {found.confidence[bin_]:.3f}, right {right:.3f}"
        )


def membership(
    model: Model,
    members: Data,
    nonmembers: Data,
    *,
    fpr: float = 0.01,
    attack: ScoreKind = "loss",
    batch_size: int = 512,
) -> Measured:
    """Share of members that the threshold attack recognises while accusing at most ``fpr`` of the non-members.

    Raises:
        DataError: with fewer than ``1 / fpr`` non-members: the share would be 0 whatever the model gives away.
    """
    inside, outside = (_scores(model, *data, attack, batch_size) for data in (members, nonmembers))
    if len(outside) * fpr < 1 - 1e-9:
        raise DataError(
            f"a false positive rate of {fpr:g} needs at least {math.ceil(1 / fpr)} non-members, not {len(outside)}"
        )
    found = tpr_at_fpr(inside, outside, fpr)
    metric = Metric(
        name="tpr_at_fpr",
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        n=len(inside),
        unit="rate",
        higher_is_better=False,
        method="clopper-pearson",
    )
    exposed = np.argsort(-inside, kind="stable")[:_WORST]
    worst = tuple(f"member {int(i)}: score {inside[i]:.4g}" for i in exposed)
    return Measured(metric, f"{attack} attack at a false positive rate of {fpr:g}", worst)


def assert_robust(
    model: Model,
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    norm: Norm | Threat = "linf",
    eps: float | str = 8 / 255,
    *,
    at_least: float,
    attack: str | Attack = "auto",
    bounds: tuple[float, float] = (0.0, 1.0),
    batch_size: int | None = None,
    seed: int = 0,
    confidence: Confidence = "interval",
) -> Measured:
    """Fails unless the robust accuracy is at least ``at_least``: its whole 95 % interval, or with
    ``confidence="none"`` its value. ``norm`` may be a whole :class:`Threat`.

    Raises:
        AssertionError: with value, interval, n and the samples that broke most easily.
    """
    __tracebackhide__ = True
    if isinstance(norm, Threat):
        norm, eps, bounds = norm.norm, norm.eps, norm.bounds
    measured = evasion(model, x, y, norm=norm, eps=eps, attack=attack, bounds=bounds, batch_size=batch_size, seed=seed)
    require(measured, ">=", at_least, confidence, "broken with the smallest change")
    return measured


def assert_accurate(
    model: Model,
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    at_least: float,
    batch_size: int = 512,
    confidence: Confidence = "interval",
) -> Measured:
    """Fails unless the accuracy is at least ``at_least``; ``confidence`` as for :func:`assert_robust`.

    Raises:
        AssertionError: with value, interval, n and the most confident errors.
    """
    __tracebackhide__ = True
    measured = accuracy(model, x, y, batch_size=batch_size)
    require(measured, ">=", at_least, confidence, "wrong with the highest confidence")
    return measured


def assert_private(
    model: Model,
    members: Data,
    nonmembers: Data,
    *,
    at_most: float,
    fpr: float = 0.01,
    attack: ScoreKind = "loss",
    batch_size: int = 512,
    confidence: Confidence = "interval",
) -> Measured:
    """Fails unless at most ``at_most`` of the members can be recognised at the false positive rate ``fpr``.

    Raises:
        AssertionError: with value, interval, n and the members that stand out most.
    """
    __tracebackhide__ = True
    measured = membership(model, members, nonmembers, fpr=fpr, attack=attack, batch_size=batch_size)
    require(measured, "<=", at_most, confidence, "most exposed")
    return measured


def assert_calibrated(
    model: Model,
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    at_most: float,
    bins: int = 15,
    batch_size: int = 512,
    confidence: Confidence = "interval",
) -> Measured:
    """Fails unless the expected calibration error is at most ``at_most``.

    Raises:
        AssertionError: with value, interval, n and the bins of confidence that are furthest off.
    """
    __tracebackhide__ = True
    measured = calibration_error(model, x, y, bins=bins, batch_size=batch_size)
    require(measured, "<=", at_most, confidence, "furthest off")
    return measured


def assert_invariant(
    predict: Callable[[Sequence[Any]], Any],
    inputs: Sequence[Any],
    change: Change | str | Iterable[Change | str],
    *,
    at_least: float,
    batch_size: int = 64,
    confidence: Confidence = "interval",
) -> Measured:
    """Fails unless the predictions of at least ``at_least`` of the inputs survive every change.

    Args:
        predict: a classifier: inputs to labels, logits ``(n, k)``, or a pipeline's list of ``{"label": …}``.
        change: ``"typos"``, ``"case"``, ``"whitespace"``, ``"punctuation"``, a function of one input, or several.

    Raises:
        AssertionError: with value, interval, n and inputs whose prediction changed.
    """
    __tracebackhide__ = True
    measured = invariance(predict, inputs, change, batch_size=batch_size)
    require(measured, ">=", at_least, confidence, "changed their prediction")
    return measured


def require(measured: Measured, operator: str, threshold: float, confidence: Confidence, worst: str) -> None:
    """Judges by the same rules as a gate of a spec; ``worst`` heads the list of the samples that did worst.

    Raises:
        AssertionError: unless it passes.
    """
    __tracebackhide__ = True
    gate = _judge(measured.metric, operator, threshold, confidence)
    if gate.verdict == "pass":
        return
    label = measured.metric.name.replace("_", " ")
    lines = [
        f"{label} is {metric_text(measured.metric)} on {measured.metric.n} samples ({measured.how}), "
        f"wanted {operator} {threshold:.4g}: {gate.verdict}"
    ]
    lines += [gate.reason] if gate.reason else []
    lines += [f"{worst}:", *(f"  {line}" for line in measured.worst)] if measured.worst else []
    raise AssertionError("\n".join(lines))


def _judge(metric: Metric, operator: str, threshold: float, confidence: Confidence) -> Gate:
    result = Result(check="assertion", id="assertion", title="", status="ok", metrics=(metric,))
    gate = parse_gate(f"assertion.{metric.name} {operator} {float(threshold)!r}")
    return evaluate_gate(gate, [VariantRecord(id=BASE, kind=BASE, results=(result,))], confidence)


def _fooled(i: int, distance: Tensor, correct: Tensor, labels: Tensor, logits: Tensor, norm: str) -> str:
    taken = int(logits[i].argmax())
    if not correct:
        return f"sample {i}: label {int(labels[i])}, predicted {taken} without any change"
    return f"sample {i}: label {int(labels[i])}, predicted {taken} after a change of {norm} {float(distance):.4g}"


def _tensors(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    inputs = x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))
    labels = y if isinstance(y, Tensor) else torch.from_numpy(np.asarray(y))
    if len(inputs) == 0 or labels.shape != inputs.shape[:1]:
        raise DataError(
            f"inputs have shape {tuple(inputs.shape)} and labels {tuple(labels.shape)}: want (n, …) and (n,)"
        )
    return inputs, labels.to(torch.int64).cpu()


@torch.no_grad()
def _logits(model: Model, x: Tensor, batch_size: int) -> Tensor:
    place = next((p.device for p in model.parameters()), x.device) if isinstance(model, torch.nn.Module) else x.device
    with attacking(model):
        return torch.cat([model(part.to(place)).float().cpu() for part in x.split(batch_size)])


def _scores(model: Model, x: Any, y: Any, attack: ScoreKind, batch_size: int) -> NDArray[np.float64]:
    inputs, labels = _tensors(x, y)
    return membership_scores(_logits(model, inputs, batch_size).numpy(), labels.numpy(), attack)


__all__: Sequence[str] = (
    "Measured",
    "accuracy",
    "assert_accurate",
    "assert_calibrated",
    "assert_invariant",
    "assert_private",
    "assert_robust",
    "calibration_error",
    "evasion",
    "invariance",
    "membership",
)
