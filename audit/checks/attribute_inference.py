"""Whether the model helps to guess a hidden column of a person's record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ...privacy.attribute import Guesses, candidates, infer_attribute
from ...reports.record import Finding, Metric, Result, Table
from ..errors import DataError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .metrics import by_name, estimate, percent, rate, recomputed
from .outputs import spaced

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


class AttributeInference(Check):
    """Guesses a column of the training records from the others, with the model and without it, and counts the gain."""

    name: ClassVar[str] = "attribute_inference"
    title: ClassVar[str] = "Attribute inference"
    question: ClassVar[str] = "Does it give hidden columns of its training records away?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"tabular"})
    references: ClassVar[tuple[str, ...]] = (
        "Fredrikson et al., Privacy in Pharmacogenetics, USENIX Security 2014",
        "Jayaraman and Evans, Are Attribute Inference Attacks Just Imputation?, arXiv 2209.01292",
    )
    standards: ClassVar[tuple[str, ...]] = standards.MEMBERSHIP
    metrics: ClassVar[Mapping[str, str]] = {
        "attack_accuracy": "Share of training records whose hidden value is guessed with the model's help.",
        "baseline_accuracy": "The same by the same kind of classifier, without the model.",
        "gain": "Difference of the two on the same records: what the model adds.",
        "gain_nonmembers": "The same on records that it was not trained on: what it learned of people in general.",
        "memorised": "Difference of the two gains: what it gives away of its training records only.",
    }
    cost: ClassVar[str] = "a forward pass for each record and candidate value, and two small classifiers"

    train: str = Field(description="The training set, path relative to the spec: its records are the victims.")
    column: int = Field(ge=0, description="Number of the hidden column, 0 the first; 2 to 20 different values.")
    limit: int | None = Field(default=2000, ge=20, description="At most so many training records.")

    def files(self) -> tuple[str, ...]:
        return (self.train,)

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        parts = self._parts(samples, context)
        context.progress.start(self.title, sum(len(part) for part in parts))
        found = self._guessed(target, parts, context.seed)
        context.progress.advance(sum(len(part) for part in parts))
        metrics = tuple(_metrics(found))
        gain = by_name(metrics)["gain"].value or 0.0
        attack = float((found.members.attack == found.members.truth).mean())
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=f"Column {self.column} of {len(found.members.truth)} training records is guessed in "
            f"{percent(attack)} of cases with the model and in {percent(attack - gain)} without it.",
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(_findings(metrics, self.column)),
            figures=(_table(found),),
            evidence=(context.evidence("guesses", found.tensors()),),
            warnings=(
                *(["The attacker knows fewer than 200 records: he could learn more."] if len(parts[0]) < 200 else []),
            ),
            not_covered=(
                "Columns other than this one, and several hidden at once.",
                "Attackers who know records of the training set in full.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=sum(len(part) for part in parts) * len(found.members.values),
        )

    def _parts(self, samples: Samples, context: Context) -> tuple[Samples, Samples, Samples]:
        """Known to the attacker, training records, and others: of the audited data every second is known."""
        if len(samples) < 40:
            raise DataError(f"{len(samples)} audited rows are too few: half of them teach the attacker, at least 20")
        known, others = samples.select(np.arange(0, len(samples), 2)), samples.select(np.arange(1, len(samples), 2))
        return known, spaced(context.samples(self.train), self.limit), spaced(others, self.limit)

    def _guessed(self, target: Target, parts: tuple[Samples, Samples, Samples], seed: int) -> Found:
        known, members, others = (_rows(part) for part in parts)
        everything = np.concatenate([rows for rows, _ in (known, members, others)])
        if self.column >= everything.shape[1]:
            raise DataError(f"there is no column {self.column}: rows have {everything.shape[1]}, counted from 0")
        candidates(everything[:, self.column])

        def ask(x: NDArray[np.float64]) -> NDArray[np.float64]:
            return torch.cat([target.logits(part) for part in np.array_split(x, max(1, len(x) // 1024))]).numpy()

        # Both kinds of victims are guessed by one attacker, who learned once.
        victims = np.concatenate([members[0], others[0]]), np.concatenate([members[1], others[1]])
        guesses = infer_attribute(ask, known, victims, self.column, seed % 2**31)
        n = len(members[0])
        return Found(_part(guesses, slice(None, n)), _part(guesses, slice(n, None)))

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        recorded = context.read_evidence(result.evidence[0])
        found = self._guessed(target, self._parts(samples, context), context.seed)
        tensors = found.tensors()
        same = all(torch.equal(tensors[name], recorded[name]) for name in ("members_truth", "nonmembers_truth"))
        yield Claim("the hidden values are those of these data", same)
        agree = [
            float((tensor == recorded[name]).double().mean())
            for name, tensor in tensors.items()
            if tensor.shape == recorded[name].shape
        ]
        # The attack's trees are grown anew from the model's answers, whose last digits may differ.
        yield Claim("the guesses follow from the model's answers", len(agree) == 7 and min(agree) > 0.98)
        again = Found(*(_recorded(recorded, side) for side in ("members", "nonmembers")))
        yield from recomputed(_metrics(again), result, "guesses")


@dataclass(frozen=True, slots=True)
class Found:
    """Guesses of training records and of others."""

    members: Guesses
    nonmembers: Guesses

    def tensors(self) -> dict[str, Tensor]:
        found = {"values": torch.from_numpy(self.members.values.copy())}
        for side, guesses in (("members", self.members), ("nonmembers", self.nonmembers)):
            for name in ("truth", "attack", "baseline"):
                found[f"{side}_{name}"] = torch.from_numpy(getattr(guesses, name).copy())
        return found


def _recorded(tensors: Mapping[str, Tensor], side: str) -> Guesses:
    truth, attack, baseline = (tensors[f"{side}_{name}"].numpy() for name in ("truth", "attack", "baseline"))
    return Guesses(truth, attack, baseline, tensors["values"].numpy())


def _part(guesses: Guesses, part: slice) -> Guesses:
    return Guesses(guesses.truth[part], guesses.attack[part], guesses.baseline[part], guesses.values)


def _rows(samples: Samples) -> Rows:
    """Raw rows as numbers ``(n, d)`` and labels.

    Raises:
        DataError: when they are something else.
    """
    raw: Any = np.asarray(samples.inputs[np.arange(len(samples))])
    try:
        rows = raw.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{samples.source}: some columns hold no numbers ({error}): encode them first") from error
    if rows.ndim != 2:
        raise DataError(f"{samples.source}: attribute inference needs rows (n, d), these have shape {rows.shape}")
    return rows, samples.labels


def _metrics(found: Found) -> Iterator[Metric]:
    members, n = found.members, len(found.members.truth)
    right = [int((guess == members.truth).sum()) for guess in (members.attack, members.baseline)]
    yield rate("attack_accuracy", right[0], n, label="Guessed with it", higher_is_better=False)
    yield rate("baseline_accuracy", right[1], n, label="Without it", higher_is_better=None)
    gains = {"gain": members.gain, "gain_nonmembers": found.nonmembers.gain}
    labels = {"gain": "What the model adds", "gain_nonmembers": "The same for others"}
    for name, gain in gains.items():
        yield _difference(name, float(gain.mean()), _variance(gain), len(gain), labels[name])
    a, b = gains.values()
    memorised = float(a.mean() - b.mean())
    yield _difference("memorised", memorised, _variance(a) + _variance(b), len(a) + len(b), "Of training records only")


def _variance(gain: NDArray[np.float64]) -> float:
    """Of the mean of paired differences; one disagreement either way is added, so that none is no certainty."""
    n = len(gain)
    return float(((gain**2).sum() + 2 - gain.sum() ** 2 / n) / n**2)


def _difference(name: str, value: float, variance: float, n: int, label: str) -> Metric:
    half = 1.959964 * variance**0.5
    return estimate(
        name, value, (value - half, value + half), n, label=label, higher_is_better=False, method="paired", unit="rate"
    )


def _findings(metrics: tuple[Metric, ...], column: int) -> Iterator[Finding]:
    found = by_name(metrics)
    gain, memorised = found["gain"], found["memorised"]
    if (memorised.ci_low or 0) > 0 and (gain.ci_low or 0) > 0:
        yield Finding(
            severity="high" if (memorised.ci_low or 0) > 0.1 else "medium",
            title=f"The model gives away column {column} of its training records",
            detail=f"It adds {percent(gain.value or 0)} to what can be guessed without it, of which "
            f"{percent(memorised.value or 0)} (at least {percent(memorised.ci_low or 0)}) for training records only.",
            remedy="Regularise, or train with differential privacy; drop the column if it is not needed.",
            standards=standards.MEMBERSHIP,
        )
    elif (gain.ci_low or 0) > 0:
        yield Finding(
            severity="low",
            title=f"The model tells something of column {column}, of anybody",
            detail=f"It adds {percent(gain.value or 0)} (at least {percent(gain.ci_low or 0)}): what it learned about "
            "people in general, not about those in its training set.",
            standards=standards.MEMBERSHIP,
        )
    else:
        yield Finding(
            severity="info",
            title=f"The model adds nothing to guessing column {column}",
            detail="What can be guessed of it can be guessed without the model.",
            standards=standards.MEMBERSHIP,
        )


def _table(found: Found) -> Table:
    rows = []
    for i, value in enumerate(found.members.values):
        own = found.members.truth == i
        guesses = (found.members.attack[own], found.members.baseline[own])
        rows.append((f"{value:g}", int(own.sum()), *(float((g == i).mean()) if len(g) else None for g in guesses)))
    return Table(
        id="by_value",
        title="Guessed by value",
        caption="Share of training records with each hidden value that are guessed.",
        columns=("value", "records", "with the model", "without"),
        rows=tuple(rows),
    )
