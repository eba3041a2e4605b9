"""Whether it shows which records the model was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ...privacy.membership.threshold import ScoreKind, membership_scores
from ...reports.record import Finding, Metric, Result
from ..errors import DataError
from ..samples import Samples
from ..target import Access, Target
from . import standards
from .base import Check, Claim, Context
from .membership_exposure import Exposure, Group
from .membership_figures import figures
from .membership_findings import findings, warnings
from .metrics import by_name, percent
from .outputs import all_logits, same_predictions, spaced


class Membership(Check):
    """Calls records members where the model is surer than a threshold, and counts how often that is right."""

    name: ClassVar[str] = "membership"
    title: ClassVar[str] = "Membership inference"
    question: ClassVar[str] = "Can an outsider tell whether a record was in the training set?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    references: ClassVar[tuple[str, ...]] = (
        "Yeom et al., Privacy Risk in Machine Learning, arXiv 1709.01604",
        "Salem et al., ML-Leaks, arXiv 1806.01246",
        "Carlini et al., Membership Inference Attacks From First Principles, arXiv 2112.03570",
        "Clopper and Pearson, The Use of Confidence or Fiducial Limits, 1934",
    )
    standards: ClassVar[tuple[str, ...]] = standards.MEMBERSHIP
    metrics: ClassVar[Mapping[str, str]] = {
        "tpr_at_fpr_RATE": "Share of members found by the lowest threshold that accuses at most RATE of the "
        "non-members (`fpr`; by default 0.01 and 0.001). Guessing would give RATE.",
        "auc": "Probability that a member scores above a non-member; 0.5 when nothing leaks. Says little about the "
        "few records that leak most.",
        "advantage": "Largest difference of true and false positive rate over all thresholds. As a largest value it is "
        "above 0, by about 1 / sqrt(n), even when nothing leaks.",
        "balanced_accuracy": "Mean share of members and of non-members recognised, by a threshold chosen on other "
        "records; 0.5 when nothing leaks.",
        "member_accuracy": "Accuracy of the model on its training records.",
        "nonmember_accuracy": "Accuracy of the model on records it was not trained on.",
        "generalization_gap": "Difference of the two: the simplest sign of memorisation.",
    }
    cost: ClassVar[str] = "one forward pass per member and non-member"

    train: str = Field(description="The training set, path relative to the spec: its records are the members.")
    nonmembers: str | None = Field(default=None, description="Records not trained on; the audited data if left out.")
    attack: ScoreKind = Field(default="loss", description="Score: loss, confidence, entropy or margin.")
    fpr: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.01, 0.001), min_length=1, description="False positive rates at which the members found are counted."
    )
    limit: int | None = Field(default=None, ge=1, description="At most so many members, and as many non-members.")

    def files(self) -> tuple[str, ...]:
        return (self.train,) if self.nonmembers is None else (self.train, self.nonmembers)

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        sides = self._sides(target, samples, context)
        context.progress.start(self.title, len(sides.members) + len(sides.nonmembers))
        logits = [all_logits(target, side, context.batch_size, context.progress) for side in sides.both]
        exposure = self._exposure(logits, sides, context.seed)
        metrics = exposure.metrics
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=self._summary(by_name(metrics), exposure),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=(*findings(exposure), *_overlap_finding(sides)),
            figures=tuple(figures(exposure, target.classes, self.attack)),
            evidence=(context.evidence("scores", self._evidence(logits, sides, exposure)),),
            warnings=tuple(warnings(exposure)),
            not_covered=(
                "Attacks with shadow or reference models (LiRA, RMIA), which find many times more at low false alarm.",
                "Attackers who can influence training, or see the model change over time.",
                "Members and non-members are taken to come from the same source: if not, the attack may tell the "
                "sources apart and not the training.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=sum(len(part) for part in logits),
        )

    def _sides(self, target: Target, samples: Samples, context: Context) -> Sides:
        train = context.samples(self.train)
        others = samples if self.nonmembers is None else context.samples(self.nonmembers)
        known = set(_fingerprints(target, train))
        fresh = np.array([mark not in known for mark in _fingerprints(target, others)], dtype=np.bool_)
        if not fresh.any():
            raise DataError(
                f"all {len(others)} non-members are in the training set {self.train}: name others as `nonmembers`"
            )
        overlap = [str(others.names[i]) for i in np.flatnonzero(~fresh).tolist()]
        kept = others.select(np.flatnonzero(fresh))
        return Sides(spaced(train, self.limit), spaced(kept, self.limit), overlap, len(others))

    def _exposure(self, logits: list[Tensor], sides: Sides, seed: int) -> Exposure:
        groups = [
            Group(
                membership_scores(part.numpy(), side.labels, self.attack),
                side.labels,
                part.numpy().argmax(1) == side.labels,
                side.names,
            )
            for part, side in zip(logits, sides.both, strict=True)
        ]
        return Exposure(groups[0], groups[1], tuple(sorted(set(self.fpr), reverse=True)), seed)

    def _evidence(self, logits: list[Tensor], sides: Sides, exposure: Exposure) -> dict[str, Tensor]:
        def joined(a: NDArray[np.generic], b: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.concatenate([a, b]))

        return {
            "logits": torch.cat(logits),
            "scores": joined(exposure.members.scores, exposure.nonmembers.scores),
            "labels": joined(sides.members.labels, sides.nonmembers.labels),
            "ids": joined(sides.members.ids, sides.nonmembers.ids),
            "member": torch.arange(len(sides.members) + len(sides.nonmembers)) < len(sides.members),
        }

    def _summary(self, metrics: Mapping[str, Metric], exposure: Exposure) -> str:
        fpr = min(exposure.fprs)
        found, auc = exposure.at_fpr[fpr], metrics["auc"]
        return (
            f"Accusing at most {percent(fpr)} of non-members, the {self.attack} attack finds {percent(found.value)} of "
            f"{len(exposure.members)} members (95 % interval {percent(found.low)} to {percent(found.high)}); guessing "
            f"would find {percent(fpr)}. Over all thresholds its AUC is {auc.value:.3f}, where 0.5 is chance."
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        sides = self._sides(target, samples, context)
        recorded = context.read_evidence(result.evidence[0])
        n = len(sides.members)
        both = [np.concatenate(pair) for pair in zip(*((s.ids, s.labels) for s in sides.both), strict=True)]
        same = np.array_equal(recorded["ids"].numpy(), both[0]) and np.array_equal(recorded["labels"].numpy(), both[1])
        same = same and int(recorded["member"].sum()) == n
        yield Claim("the scores belong to these members and non-members", same)
        if not same:
            return
        logits = [all_logits(target, side, context.batch_size) for side in sides.both]
        agree = same_predictions(torch.cat(logits), recorded["logits"])
        close = torch.allclose(torch.cat(logits), recorded["logits"], rtol=1e-3, atol=1e-3)
        yield Claim("the model answers as recorded", bool(agree.all()) and close)
        parts = [recorded["logits"][:n], recorded["logits"][n:]]
        again = self._exposure(parts, sides, context.seed)
        scores = np.concatenate([again.members.scores, again.nonmembers.scores])
        yield Claim("the scores follow from the logits", np.allclose(scores, recorded["scores"].numpy(), rtol=1e-6))
        for metric in again.metrics:
            claimed = result.metric(metric.name)
            value = None if claimed is None else claimed.value
            ok = value is not None and metric.value is not None and abs(value - metric.value) <= 1e-6
            yield Claim(f"{metric.name} follows from the scores", ok, f"{value}, recomputed {metric.value}")


@dataclass(frozen=True, slots=True)
class Sides:
    """Members and non-members, apart.

    Attributes:
        overlap: names of given non-members that are in the training set, and were left out.
        given: how many non-members there were with them.
    """

    members: Samples
    nonmembers: Samples
    overlap: list[str]
    given: int

    @property
    def both(self) -> tuple[Samples, Samples]:
        return self.members, self.nonmembers


def _fingerprints(target: Target, samples: Samples) -> Iterator[bytes]:
    """A hash of each input as the model sees it, so that the same picture in another file format is the same."""
    for raw, _ in samples.batches(512):
        for row in target.encode(raw).numpy():
            yield hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()


def _overlap_finding(sides: Sides) -> Iterator[Finding]:
    if not sides.overlap:
        return
    share = len(sides.overlap) / sides.given
    names = ", ".join(sides.overlap[:5]) + (" …" if len(sides.overlap) > 5 else "")
    yield Finding(
        severity="high" if share >= 0.01 else "medium",
        title=f"{len(sides.overlap)} of {sides.given} held-out records are also in the training set",
        detail=f"They were left out here, but every other figure on these data is too good by as much: {names}.",
        remedy="Remove the duplicates from one of the two sets, and audit again.",
        standards=standards.MEMBERSHIP,
    )
