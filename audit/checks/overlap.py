"""Whether the audited data are new to the model, or in its training set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...privacy.overlap import Match, exact_matches, image_matches, row_matches, text_matches
from ...reports.record import Figure, Finding, Gallery, Item, Metric, Picture, Result, Table
from ..samples import Samples
from ..target import Access, Target
from . import standards
from .base import Check, Claim, Context, encoded
from .metrics import percent, rate, recomputed

_THRESHOLDS = {"image": 0.1, "tabular": 0.05, "text": 0.3}
_UNITS = {
    "image": "root mean square difference after brightness and contrast are taken away; 1.41 for unrelated pictures",
    "tabular": "distance in units of the median distance of training rows to their nearest neighbour",
    "text": "1 - Jaccard similarity of the sets of three-word shingles",
}
_SHOWN = 10


class Overlap(Check):
    """Looks for audited samples that are in the training set, to the byte or nearly: they make all figures too good."""

    name: ClassVar[str] = "overlap"
    title: ClassVar[str] = "Overlap with the training data"
    question: ClassVar[str] = "Were the audited samples in the training set?"
    requires: ClassVar[frozenset[Access]] = frozenset()
    references: ClassVar[tuple[str, ...]] = (
        "Barz and Denzler, Do We Train on Test Data?, arXiv 1902.00423",
        "Broder, On the Resemblance and Containment of Documents, 1997",
    )
    standards: ClassVar[tuple[str, ...]] = standards.ACCURACY
    metrics: ClassVar[Mapping[str, str]] = {
        "exact_overlap": "Share of audited samples that are in the training set as they are.",
        "near_overlap": "Share of those that are not, but whose nearest training record is nearly the same.",
        "overlap": "Share that is either.",
        "label_conflicts": "Share of the overlapping samples whose label differs from that of their training record.",
    }
    cost: ClassVar[str] = "a hash of every record, and distances to the few that share a part of it; no model is asked"

    train: str = Field(description="The training set, path relative to the spec.")
    threshold: float | None = Field(
        default=None,
        ge=0,
        description="Largest distance at which records count as nearly the same: by default 0.1 for images, 0.05 for "
        "tables, 0.3 for text.",
    )
    near: bool = Field(default=True, description="Look for near duplicates too, not only for exact ones.")
    limit: int | None = Field(default=None, ge=1, description="At most so many training records, the first ones.")

    def files(self) -> tuple[str, ...]:
        return (self.train,)

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        train = self._train(context)
        context.progress.start(self.title, 1)
        found = self._matches(target, samples, train)
        context.progress.advance()
        metrics = tuple(_metrics(found, samples, train))
        evidence = context.evidence("matches", _evidence(target, samples, train, found))
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=f"{sum(m.exact for m in found)} of {len(samples)} audited samples are in the training set as they "
            f"are, {sum(not m.exact for m in found)} more nearly so.",
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(_findings(found, samples)),
            figures=tuple(_figures(found, samples, train, target, evidence.path)),
            evidence=(evidence,),
            not_covered=tuple(self._not_covered(target)),
            references=self.references,
            standards=self.standards,
        )

    def _train(self, context: Context) -> Samples:
        train = context.samples(self.train)
        return train if self.limit is None else train.select(np.arange(min(self.limit, len(train))))

    def _matches(self, target: Target, samples: Samples, train: Samples) -> list[Match]:
        threshold = _THRESHOLDS[target.modality] if self.threshold is None else self.threshold
        if target.modality == "text":
            texts = [[str(text) for raw, _ in side.batches(512) for text in raw] for side in (samples, train)]
            if self.near:
                return text_matches(texts[0], texts[1], threshold)
            return _exact(exact_matches(texts[0], texts[1]))
        low, high = target.bounds
        sides = [encoded(target, side)[0].numpy() for side in (samples, train)]
        if not self.near:
            return _exact(exact_matches(sides[0], sides[1]))
        if target.modality == "image":
            pictures = [(x - low) / (high - low) for x in sides]
            return image_matches(pictures[0], pictures[1], threshold)
        rows = [x.reshape(len(x), -1).astype(np.float64) for x in sides]
        return row_matches(rows[0], rows[1], threshold)

    def _not_covered(self, target: Target) -> Iterator[str]:
        if target.modality == "image":
            yield "Pictures that were cropped, turned or mirrored before they went into the training set."
        elif target.modality == "text":
            yield "Texts that were translated or rewritten before they went into the training set."
        if not self.near:
            yield "Near duplicates."
        if self.limit is not None:
            yield f"Training records after the first {self.limit}."

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        recorded, train = context.read_evidence(result.evidence[0]), self._train(context)
        found = self._matches(target, samples, train)
        pairs = torch.tensor([[m.test, m.train] for m in found], dtype=torch.int64).reshape(-1, 2)
        yield Claim("the same pairs are found again", torch.equal(pairs, recorded["pairs"]))
        yield from recomputed(_metrics(found, samples, train), result, "data")


def _exact(places: Mapping[int, int]) -> list[Match]:
    return [Match(i, place, True, 0.0) for i, place in sorted(places.items())]


def _metrics(found: list[Match], samples: Samples, train: Samples) -> Iterator[Metric]:
    n, exact = len(samples), sum(match.exact for match in found)
    conflicts = sum(samples.labels[m.test] != train.labels[m.train] for m in found)
    yield rate("exact_overlap", exact, n, label="In the training set", higher_is_better=False)
    yield rate("near_overlap", len(found) - exact, n, label="Nearly in the training set", higher_is_better=False)
    yield rate("overlap", len(found), n, label="Either", higher_is_better=False)
    yield rate("label_conflicts", int(conflicts), len(found), label="With another label", higher_is_better=False)


def _evidence(target: Target, samples: Samples, train: Samples, found: list[Match]) -> dict[str, Tensor]:
    pairs = torch.tensor([[m.test, m.train] for m in found], dtype=torch.int64).reshape(-1, 2)
    distances = torch.tensor([m.distance for m in found], dtype=torch.float64)
    tensors = {"pairs": pairs, "distances": distances}
    shown = _shown(found)
    if target.modality == "image" and shown:
        tensors["audited"] = target.encode(samples.inputs[np.array([m.test for m in shown])])
        tensors["training"] = target.encode(train.inputs[np.array([m.train for m in shown])])
    return tensors


def _shown(found: list[Match]) -> list[Match]:
    """Near ones first: they are what a person has to judge."""
    return sorted(found, key=lambda match: (match.exact, match.distance))[:_SHOWN]


def _figures(found: list[Match], samples: Samples, train: Samples, target: Target, path: str) -> Iterator[Figure]:
    shown = _shown(found)
    if not shown:
        return
    yield Table(
        id="pairs",
        title="Overlapping records",
        caption=f"Distance: {_UNITS[target.modality]}. At most {_SHOWN} of {len(found)}, near duplicates first.",
        columns=("audited", "training", "distance", "class", "class in training"),
        rows=tuple(
            (
                str(samples.names[m.test]),
                str(train.names[m.train]),
                m.distance,
                target.classes[samples.labels[m.test]],
                target.classes[train.labels[m.train]],
            )
            for m in shown
        ),
    )
    if target.modality == "image":
        yield Gallery(
            id="pictures",
            title="Overlapping pictures",
            evidence=path,
            pictures=(Picture(tensor="audited", title="audited"), Picture(tensor="training", title="training")),
            items=tuple(
                Item(
                    index=i,
                    sample_id=str(samples.names[m.test]),
                    captions=(str(samples.names[m.test]), f"{train.names[m.train]}, distance {m.distance:.3f}"),
                )
                for i, m in enumerate(shown)
            ),
        )


def _findings(found: list[Match], samples: Samples) -> Iterator[Finding]:
    share = len(found) / len(samples)
    if not found:
        yield Finding(
            severity="info",
            title="No audited sample is in the training set",
            detail=f"None of {len(samples)}, as far as hashes and distances tell.",
            standards=standards.ACCURACY,
        )
        return
    yield Finding(
        severity="high" if share >= 0.01 else "medium",
        title=f"{len(found)} of {len(samples)} audited samples are in the training set, or nearly",
        detail=f"Every figure on these data may be too good by up to {percent(share)}.",
        remedy="Remove them from one of the two sets, and audit again.",
        standards=standards.ACCURACY,
    )
