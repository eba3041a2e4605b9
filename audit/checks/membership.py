"""Whether it shows which records the model was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...reports.record import Finding, Metric, Result
from ..errors import DataError, UnsupportedError
from ..recipe import RANDOM
from ..samples import Samples
from ..target import Access, Target
from . import standards
from .base import Check, Claim, Context, Progress, encoded
from .membership_attacks import NOTHING_TO_KEEP, AttackOptions, Queries, Tensors
from .membership_exposure import Exposure, Group
from .membership_figures import figures
from .membership_findings import findings, warnings
from .membership_shadows import settled
from .metrics import by_name, percent, recomputed
from .outputs import all_logits, same_predictions, spaced


class Membership(AttackOptions, Check):
    """Calls records members where the model treats them as it would if it had seen them, and counts how often that
    is right: by a threshold, by shadow models (LiRA, RMIA), by quantile regression, or from labels alone."""

    name: ClassVar[str] = "membership"
    title: ClassVar[str] = "Membership inference"
    question: ClassVar[str] = "Can an outsider tell whether a record was in the training set?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    references: ClassVar[tuple[str, ...]] = (
        "Yeom et al., Privacy Risk in Machine Learning, arXiv 1709.01604",
        "Salem et al., ML-Leaks, arXiv 1806.01246",
        "Shokri et al., Membership Inference Attacks Against Machine Learning Models, arXiv 1610.05820",
        "Carlini et al., Membership Inference Attacks From First Principles, arXiv 2112.03570",
        "Zarifzadeh et al., Low-Cost High-Power Membership Inference Attacks, arXiv 2312.03262",
        "Bertran et al., Scalable Membership Inference Attacks via Quantile Regression, arXiv 2307.03694",
        "Choquette-Choo et al., Label-Only Membership Inference Attacks, arXiv 2007.14321",
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
    cost: ClassVar[str] = (
        "one forward pass per member and non-member; lira, rmia, shokri: also shadows x epochs passes of training over "
        "half of them; label_only: some 100 forward passes for each"
    )
    version: ClassVar[int] = 5

    train: str = Field(description="The training set, path relative to the spec: its records are the members.")
    nonmembers: str | None = Field(default=None, description="Records not trained on; the audited data if left out.")
    fpr: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.01, 0.001), min_length=1, description="False positive rates at which the members found are counted."
    )
    limit: int | None = Field(default=None, ge=1, description="At most so many members, and as many non-members.")

    def files(self) -> tuple[str, ...]:
        named = (self.train, self.nonmembers, *self.start_files)
        return tuple(name for name in named if name is not None)

    @model_validator(mode="after")
    def _options_do_something(self) -> Self:
        """An option that the attack does not look at is a mistake."""
        given = self.model_fields_set
        unused = given & _SHADOW_OPTIONS if not self.with_shadows else set[str]()
        unused |= given & {"online"} if self.attack not in ("lira", "rmia") else set[str]()
        unused |= given & {"flip", "shifts"} if self.attack not in ("lira", "rmia", "label_only") else set[str]()
        unused |= given & {"variance"} if self.attack != "lira" else set[str]()
        if self.start == RANDOM and self.keeps_weights:
            raise ValueError(NOTHING_TO_KEEP)
        if self.scope != "lora" and given & {"lora_rank", "lora_alpha"} and self.with_shadows:
            raise ValueError("lora_rank and lora_alpha: only used with scope lora")
        if unused:
            raise ValueError(
                f"{', '.join(sorted(unused))}: not used by the {self.attack} attack; remove, or choose another"
            )
        return self

    def required(self) -> frozenset[Access]:
        return self.access()

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        self._refuse_texts(target)
        sides = self._sides(target, samples, context)
        queries = self._queries(target, sides)
        context.progress.start(self.title, len(queries.y))
        tensors = {"target_logits": self._asked(target, sides, queries, context, context.progress)}
        forwards = tensors["target_logits"].shape[0] * len(queries.y)
        tensors |= self.gather(target, queries, context)
        exposure = self._exposure(tensors, queries, sides, context.seed)
        metrics = exposure.metrics
        told = settled(self.recipe(target)) if self.with_shadows else {}
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=self._summary(by_name(metrics), exposure),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}) | told,
            metrics=metrics,
            findings=(*findings(exposure, shadows=self.with_shadows), *_overlap_finding(sides)),
            figures=tuple(figures(exposure, target.classes, self.attack)),
            evidence=(context.evidence("scores", self._evidence(tensors, queries, exposure)),),
            warnings=(*warnings(exposure), *self.caveats(target, len(queries.y), len(context.samples(self.train)))),
            not_covered=(
                *self.not_covered(),
                "Attackers who can influence training, or see the model change over time.",
                "Members and non-members are taken to come from the same source: if not, the attack may tell the "
                "sources apart and not the training.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=forwards,
        )

    def _refuse_texts(self, target: Target) -> None:
        if target.modality != "text":
            return
        reasons = {
            "quantile": "learns from inputs as numbers, and numbers of tokens measure nothing",
            "label_only": "changes inputs a little, and numbers of tokens mean something else then",
        }
        if self.attack in reasons:
            raise UnsupportedError(
                f"membership: {self.attack} {reasons[self.attack]}; for texts choose a threshold on scores, lira, rmia "
                "or shokri"
            )
        if self.flip or self.shifts:
            raise UnsupportedError("membership: flip and shifts change pictures; leave them out for texts")

    def _queries(self, target: Target, sides: Sides) -> Queries:
        x = encoded(target, *sides.both)[0] if self.needs_inputs else torch.empty(sum(map(len, sides.both)), 0)
        y = np.concatenate([side.labels for side in sides.both])
        ids = torch.from_numpy(np.concatenate([side.ids for side in sides.both]))
        return Queries(x, y, ids, np.arange(len(y)) >= len(sides.members))

    def _asked(
        self, target: Target, sides: Sides, queries: Queries, context: Context, progress: Progress | None = None
    ) -> Tensor:
        """The target's logits ``(q, n, k)`` on each version of every record, members first."""
        plain = torch.cat([all_logits(target, side, context.batch_size, progress) for side in sides.both])
        more = [_logits(target, view, context.batch_size or 512) for view in self.versions(queries.x)[1:]]
        return torch.stack([plain, *more])

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

    def _exposure(self, tensors: Tensors, queries: Queries, sides: Sides, seed: int) -> Exposure:
        scores = self.scores(tensors, queries, seed)
        correct = tensors["target_logits"][0].numpy().argmax(1) == queries.y
        n = len(sides.members)
        parts = (slice(None, n), slice(n, None))
        groups = [
            Group(scores[part], queries.y[part], correct[part], side.names)
            for part, side in zip(parts, sides.both, strict=True)
        ]
        return Exposure(groups[0], groups[1], tuple(sorted(set(self.fpr), reverse=True)), seed)

    def _evidence(self, tensors: Tensors, queries: Queries, exposure: Exposure) -> Tensors:
        scores = np.concatenate([exposure.members.scores, exposure.nonmembers.scores])
        return {
            **tensors,
            "scores": torch.from_numpy(scores),
            "labels": torch.from_numpy(queries.y),
            "ids": queries.ids,
            "member": torch.from_numpy(~queries.known),
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
        queries = self._queries(target, sides)
        recorded = context.read_evidence(result.evidence[0])
        same = torch.equal(recorded["ids"], queries.ids) and np.array_equal(recorded["labels"].numpy(), queries.y)
        same = same and np.array_equal(recorded["member"].numpy(), ~queries.known)
        yield Claim("the scores belong to these members and non-members", same)
        if not same:
            return
        logits, claimed_logits = self._asked(target, sides, queries, context), recorded["target_logits"]
        agree = (
            logits.shape == claimed_logits.shape
            and same_predictions(logits.flatten(0, 1), claimed_logits.flatten(0, 1)).all()
        )
        close = bool(agree) and torch.allclose(logits, claimed_logits, rtol=1e-3, atol=1e-3)
        if close and self.attack == "label_only":
            asked = self.label_only(target, queries, context.seed, context.batch_size or 256)
            # A near tie at some distance may go either way on another machine.
            close = bool(((asked - recorded["label_only_scores"]).abs() < 0.05).double().mean() > 0.99)
        yield Claim("the model answers as recorded", close)
        again = self._exposure(recorded, queries, sides, context.seed)
        scores = np.concatenate([again.members.scores, again.nonmembers.scores])
        tolerance = 1e-3 if self.attack in ("shokri", "quantile") else 1e-6  # these train a small network anew
        claimed_scores = recorded["scores"].numpy()
        follow = np.allclose(scores, claimed_scores, rtol=tolerance, atol=tolerance * 1e-2 + 1e-9)
        yield Claim("the scores follow from the logits", follow)
        if follow:  # from the recorded scores themselves, so that rounding cannot move a rate
            n = len(sides.members)
            again = Exposure(
                replace(again.members, scores=claimed_scores[:n]),
                replace(again.nonmembers, scores=claimed_scores[n:]),
                again.fprs,
                again.seed,
            )
        yield from recomputed(again.metrics, result, "scores", 1e-6)


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


_SHADOW_OPTIONS = {
    *("shadows", "epochs", "shadow_batch_size", "optimizer", "lr", "weight_decay"),
    *("start", "new_head", "scope", "lora_rank", "lora_alpha"),
}


@torch.no_grad()
def _logits(target: Target, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([target.module(part.to(target.device)).float().cpu() for part in x.split(batch_size)])


def _fingerprints(target: Target, samples: Samples) -> Iterator[bytes]:
    """A hash of each input as the model sees it, so that the same picture in another file format is the same.

    Texts are encoded one at a time: with others they would be padded to the longest of these.
    """
    for raw, _ in samples.batches(1 if target.modality == "text" else 512):
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
