"""Per-sample outcomes behind a metric, read back from a result's evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..reports.record import Evidence, Metric, Result
from .context import read_evidence
from .errors import OutputError

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One number a sample, whose mean is the metric: ids int64 ``(n,)`` and values ``(n,)``, sorted by id."""

    ids: NDArray[np.int64]
    values: NDArray[np.float64]


def outcomes(result: Result, directory: Path) -> dict[str, Outcomes]:
    """The per-sample outcomes of every metric of ``result`` that its evidence holds them for.

    Nothing is taken on trust: outcomes count only when their mean is the metric's value. Evidence that is missing or
    was changed gives none.
    """
    found: dict[str, Outcomes] = {}
    for evidence in result.evidence:
        for name, ids, values in _candidates(_tensors(directory, evidence), [metric.name for metric in result.metrics]):
            metric = result.metric(name)
            if metric is not None and name not in found and _explains(metric, values) and _unique(ids):
                order = np.argsort(ids, kind="stable")
                found[name] = Outcomes(ids[order], values[order])
    # A safetensors file gives its tensors in no fixed order; the result's order is the record's.
    return {metric.name: found[metric.name] for metric in result.metrics if metric.name in found}


def aligned(first: Outcomes, second: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The values of both on the same samples in the same order, or None when the samples differ."""
    return (first.values, second.values) if np.array_equal(first.ids, second.ids) else None


def _candidates(
    tensors: Mapping[str, Tensor], names: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.float64]]]:
    """Metric name, ids and values: tensors named like a metric, and those that follow from logits and labels."""
    if "ids" not in tensors:
        return
    ids = tensors["ids"].numpy()
    for key, tensor in (*_from_logits(tensors), *_robust(tensors, names), *sorted(tensors.items())):
        if tensor.shape == tensors["ids"].shape and key != "ids":
            yield key if key in names else key.replace(".", "_"), ids, tensor.double().numpy()


def _from_logits(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    labels = tensors.get("labels")
    for name, metric in (("logits", "accuracy"), ("clean_logits", "clean_accuracy")):
        logits = tensors.get(name)
        if logits is None or labels is None or logits.dim() != 2 or len(logits) != len(labels):
            continue
        yield metric, logits.argmax(1) == labels
        loss = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
        yield "log_loss", loss
        rank = (logits > logits.gather(1, labels[:, None])).sum(1)
        yield from ((f"top_{k}_accuracy", rank < k) for k in (2, 3, 5))


def _robust(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Who is right on the clean input and not known to break, at each radius at which somebody breaks.

    The sets lie within one another, so the one whose size is the metric's is the metric's.
    """
    if not {"clean_logits", "labels", "rows", "radius"} <= set(tensors):
        return
    correct = tensors["clean_logits"].argmax(1) == tensors["labels"]
    radius = torch.full((len(correct),), float("inf"), dtype=torch.float64)
    radius[tensors["rows"]] = tensors["radius"].double()
    for eps in [0.0, *radius[radius.isfinite()].unique().tolist()]:
        standing = correct & ~(radius <= eps)
        yield from ((name, standing) for name in names if name.startswith("robust_accuracy"))


def _tensors(directory: Path, evidence: Evidence) -> Mapping[str, Tensor]:
    try:
        return read_evidence(directory, evidence) if evidence.kind in ("scores", "adversarial") else {}
    except OutputError:
        return {}


def _explains(metric: Metric, values: NDArray[np.float64]) -> bool:
    return metric.value is not None and metric.n == len(values) and abs(values.mean() - metric.value) <= _ROUNDING


def _unique(ids: NDArray[np.int64]) -> bool:
    return len(np.unique(ids)) == len(ids)


def class_values(result: Result, directory: Path, metric: str, k: int) -> NDArray[np.float64] | None:
    """What ``metric`` is the mean of, on the samples of class ``k`` alone; None where the evidence does not say.

    ``recall`` is the share of the class that is found, ``precision`` the share of predictions of the class that are
    right; any other name is that of a metric with per-sample outcomes, on the samples whose label is ``k``.
    """
    for evidence in result.evidence:
        tensors = _tensors(directory, evidence)
        logits, labels = tensors.get("logits"), tensors.get("labels")
        if metric in ("recall", "precision") and logits is not None and labels is not None:
            predicted = logits.argmax(1)
            chosen = labels == k if metric == "recall" else predicted == k
            return (predicted == labels)[chosen].double().numpy()
    found = outcomes(result, directory).get(metric)
    known = _labels(result, directory)
    if found is None or not set(found.ids.tolist()) <= set(known):
        return None
    return found.values[np.array([known[i] for i in found.ids.tolist()]) == k]


def _labels(result: Result, directory: Path) -> dict[int, int]:
    known: dict[int, int] = {}
    for evidence in result.evidence:
        tensors = _tensors(directory, evidence)
        if {"ids", "labels"} <= set(tensors) and tensors["ids"].shape == tensors["labels"].shape:
            known |= dict(zip(tensors["ids"].tolist(), tensors["labels"].tolist(), strict=True))
    return known
