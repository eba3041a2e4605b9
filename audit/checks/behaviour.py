"""Whether the model behaves as any reader would expect: invariance, direction, minimum functionality."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ...attacks.statistics import rate_interval
from ...attacks.text.behaviour.edits import INVARIANT, variants
from ...attacks.text.behaviour.templates import ADDED, NEGATIVE, POSITIVE, SENTIMENT
from ...attacks.text.victim import Victim
from ...reports.record import Chart, Excerpt, Excerpts, Figure, Finding, Line, MarkedText, Metric, Result, Table
from .. import registry
from ..errors import SpecError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .images import verdict
from .metrics import percent, rate
from .outputs import same_predictions
from .text_figures import differences
from .text_inputs import Texts

Expectation = Literal["same", "label", "up"]

_TOLERANCE = 0.1
"""By how much a probability may move the wrong way before a direction test fails."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A text and what the model should say of it.

    Attributes:
        test: the test it belongs to.
        case: trials of a case stand or fall together: a case fails when one of them does.
        row: the sample it was made from; -1 for templates.
        expect: the same class as for the sample; a class; its probability not lower than for the sample.
        c: the class of the last three.
    """

    test: str
    case: int
    row: int
    text: str
    expect: Expectation
    c: int = -1


class Behaviour(Check):
    """CheckList's three kinds of tests: edits that must not matter, additions that may only push one way, and
    templates whose label is known.

    Invariance runs on the audited texts, whatever the task. Direction and templates are about sentiment: they run when
    `positive` and `negative` name the classes.
    """

    name: ClassVar[str] = "behaviour"
    title: ClassVar[str] = "Behavioural tests"
    question: ClassVar[str] = "Does it behave as a reader expects?"
    requires: ClassVar[frozenset[Access]] = frozenset({"labels"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    references: ClassVar[tuple[str, ...]] = (
        "Ribeiro et al., Beyond Accuracy: Behavioral Testing of NLP Models with CheckList, arXiv 2005.04118",
    )
    standards: ClassVar[tuple[str, ...]] = standards.FAULTS
    metrics: ClassVar[Mapping[str, str]] = {
        "TEST_failure_rate": "Share of the cases of a test that the model fails: invariance_names, invariance_numbers, "
        "invariance_contractions, invariance_typos, invariance_case, invariance_punctuation, direction_positive, "
        "direction_negative, and template_ with vocabulary, negation, tense, others, neutral.",
        "failure_rate": "The same over all tests, each case counting once.",
        "worst_failure_rate": "Failure rate of the test that fails most.",
    }
    cost: ClassVar[str] = "about ten forward passes per text, and four hundred for the templates"
    version: ClassVar[int] = 2

    tests: tuple[str, ...] = Field(default=tuple(INVARIANT), description=f"Invariances: {', '.join(INVARIANT)}.")
    positive: str | None = Field(default=None, description="Class of positive sentiment, for templates and direction.")
    negative: str | None = Field(default=None, description="Class of negative sentiment, for templates and direction.")
    limit: int | None = Field(default=200, ge=1, description="Texts that edits are tried on, evenly spaced.")
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is edited.")
    gallery: int = Field(default=8, ge=0, description="How many failures to show.")
    batch_size: int | None = Field(default=None, ge=1, description="Largest batch; 128 if left out.")

    @field_validator("tests")
    @classmethod
    def _tests_exist(cls, tests: tuple[str, ...]) -> tuple[str, ...]:
        for test in tests:
            if test not in INVARIANT:
                raise ValueError(registry.unknown("test", test, INVARIANT))
        return tuple(dict.fromkeys(tests))

    @model_validator(mode="after")
    def _both_classes(self) -> Behaviour:
        if (self.positive is None) != (self.negative is None):
            raise ValueError("give both positive and negative, or neither")
        return self

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        texts = Texts.of(target, samples, self.limit, int(self.column == "second"))
        trials = self.trials(texts, context.seed)
        context.progress.start(self.title, len(texts) + len(trials))
        base, logits = self._asked(texts, trials, context)
        texts.require_finite(base)
        failed = failures(trials, base, logits)
        counts = counted(trials, failed)
        evidence = context.evidence(
            "scores", {"ids": torch.from_numpy(texts.samples.ids), "base_logits": base, "logits": logits}
        )
        metrics = tuple(_metrics(counts))
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(counts),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}, exclude_none=True),
            metrics=metrics,
            findings=tuple(_findings(counts)),
            figures=(*_figures(counts), *_shown(texts, trials, base, logits, failed, self.gallery)),
            evidence=(evidence,),
            warnings=tuple(self._warnings(counts)),
            not_covered=(
                "Edits other than the ones named; names, cities and templates are English.",
                "Whether an edit leaves the label alone in every text: single failures are worth reading.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=len(texts) + len(trials),
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        texts = Texts.of(target, samples, self.limit, int(self.column == "second"))
        trials = self.trials(texts, context.seed)
        recorded = context.read_evidence(result.evidence[0])
        same = np.array_equal(recorded["ids"].numpy(), texts.samples.ids) and len(recorded["logits"]) == len(trials)
        yield Claim("the tests ran on the audited texts", same)
        if not same:
            return
        base, logits = self._asked(texts, trials, context)
        agree = np.concatenate(
            [same_predictions(base, recorded["base_logits"]), same_predictions(logits, recorded["logits"])]
        )
        yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)}")
        again = {
            m.name: m for m in _metrics(counted(trials, failures(trials, recorded["base_logits"], recorded["logits"])))
        }
        for metric in result.metrics:
            other = again.get(metric.name)
            ok = other is not None and other.n == metric.n and abs((other.value or 0) - (metric.value or 0)) < 1e-9
            yield Claim(f"{metric.name} follows from the recorded scores", ok)

    def trials(self, texts: Texts, seed: int) -> list[Trial]:
        """Every text that the model is asked about; the same for the same seed and samples."""
        found: list[Trial] = []
        for row, sample in enumerate(texts.samples.ids.tolist()):
            for test in self.tests:
                rng = random.Random(f"{seed}:{sample}:{test}")  # noqa: S311 - for choosing edits
                name, text = f"invariance_{test}", texts.text(row)
                found += [Trial(name, row, row, other, "same") for other in variants(test, text, rng)]
        if self.positive is None or self.negative is None:
            return found
        numbers = {POSITIVE: self._class(texts, self.positive), NEGATIVE: self._class(texts, self.negative)}
        for row in range(len(texts)):
            for word, c in numbers.items():
                added = [f"{texts.text(row).rstrip()} {sentence}" for sentence in ADDED[word]]
                found += [Trial(f"direction_{word}", row, row, text, "up", c) for text in added]
        for template in SENTIMENT:
            for sentence in template.sentences():
                found.append(
                    Trial(f"template_{template.test}", len(found), -1, sentence, "label", numbers[template.label])
                )
        return found

    def _class(self, texts: Texts, name: str) -> int:
        classes = texts.target.classes
        if name not in classes:
            raise SpecError(registry.unknown("class", name, classes))
        return classes.index(name)

    def _asked(self, texts: Texts, trials: Sequence[Trial], context: Context) -> tuple[Tensor, Tensor]:
        """Logits of the samples, and of the trials; a template takes the place of a sample's text."""
        size = self.batch_size or context.batch_size or 128
        victim = Victim(texts.logits, texts.raws, texts.y.tolist(), column=texts.column, batch_size=size)
        base = victim.outputs(range(len(texts)), [texts.text(row) for row in range(len(texts))])
        logits = victim.outputs([max(trial.row, 0) for trial in trials], [trial.text for trial in trials])
        context.progress.advance(len(texts) + len(trials))
        return base, logits if len(trials) else base[:0]

    def _warnings(self, counts: Mapping[str, tuple[int, int]]) -> Iterator[str]:
        for test in self.tests:
            if f"invariance_{test}" not in counts:
                yield f"No text has anything for the test {test}: it did not run."
        if self.positive is None:
            yield "Templates and direction tests need the classes of sentiment: set positive and negative."


def failures(trials: Sequence[Trial], base: Tensor, logits: Tensor) -> list[bool]:
    """Whether each trial fails."""
    before, after = base.double().softmax(1), logits.double().softmax(1)
    failed = []
    for i, trial in enumerate(trials):
        said = int(logits[i].argmax())
        match trial.expect:
            case "same":
                failed.append(said != int(base[trial.row].argmax()))
            case "label":
                failed.append(said != trial.c)
            case "up":
                failed.append(bool(after[i, trial.c] < before[trial.row, trial.c] - _TOLERANCE))
    return failed


def counted(trials: Sequence[Trial], failed: Sequence[bool]) -> dict[str, tuple[int, int]]:
    """Failed cases and all cases of each test."""
    cases: dict[str, dict[int, bool]] = {}
    for trial, bad in zip(trials, failed, strict=True):
        own = cases.setdefault(trial.test, {})
        own[trial.case] = own.get(trial.case, False) or bad
    return {test: (sum(own.values()), len(own)) for test, own in cases.items()}


def spoken(test: str) -> str:
    """``invariance_names`` as ``invariance: names``."""
    return test.replace("_", ": ", 1)


def _metrics(counts: Mapping[str, tuple[int, int]]) -> Iterator[Metric]:
    for test, (bad, n) in counts.items():
        yield rate(f"{test}_failure_rate", bad, n, label=f"Failures, {spoken(test)}", higher_is_better=False)
    bad, n = sum(bad for bad, _ in counts.values()), sum(n for _, n in counts.values())
    yield rate("failure_rate", bad, n, label="Failures, all tests", higher_is_better=False)
    if counts:
        worst = max(counts, key=lambda test: counts[test][0] / counts[test][1])
        yield rate("worst_failure_rate", *counts[worst], label="Failures, worst test", higher_is_better=False)


def _summary(counts: Mapping[str, tuple[int, int]]) -> str:
    if not counts:
        return "No test applied to these texts."
    worst = max(counts, key=lambda test: counts[test][0] / counts[test][1])
    bad, n = counts[worst]
    low, high = rate_interval(bad, n)
    total, cases = sum(bad for bad, _ in counts.values()), sum(n for _, n in counts.values())
    return (
        f"The model fails {total} of {cases} cases in {len(counts)} tests. It fails most in {spoken(worst)}: "
        f"{percent(bad / n)} of {n} cases (95 % interval {percent(low)} to {percent(high)})."
    )


def _findings(counts: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    for test, (bad, n) in counts.items():
        low, high = rate_interval(bad, n)
        if n >= 10 and low >= 0.05:
            yield Finding(
                severity="high" if low >= 0.3 else "medium",
                title=f"The model fails {percent(bad / n)} of the cases of {spoken(test)}",
                detail=f"{bad} of {n} cases, 95 % interval {percent(low)} to {percent(high)}.",
                remedy="Add such texts to the training data.",
                standards=standards.FAULTS,
            )


def _figures(counts: Mapping[str, tuple[int, int]]) -> Iterator[Figure]:
    if not counts:
        return
    intervals = [rate_interval(bad, n) for bad, n in counts.values()]
    yield Chart(
        id="tests",
        title="Failures by test",
        caption="Share of cases that the model fails; bars: 95 % intervals.",
        style="bar",
        x_label="test",
        y_label="failure rate",
        y_range=(0, 1),
        categories=tuple(spoken(test) for test in counts),
        lines=(
            Line(
                name="failure rate",
                x=tuple(float(i) for i in range(len(counts))),
                y=tuple(bad / n for bad, n in counts.values()),
                low=tuple(low for low, _ in intervals),
                high=tuple(high for _, high in intervals),
            ),
        ),
    )
    rows = tuple((spoken(test), n, bad, bad / n) for test, (bad, n) in counts.items())
    yield Table(id="counts", title="Cases by test", columns=("test", "cases", "failed", "failure rate"), rows=rows)


_LONGEST = 20_000
"""Characters of a text that are shown."""


def _shown(
    texts: Texts, trials: Sequence[Trial], base: Tensor, logits: Tensor, failed: Sequence[bool], most: int
) -> Iterator[Figure]:
    """Failures, one test after the other."""
    by_test: dict[str, list[int]] = {}
    for i, bad in enumerate(failed):
        if bad:
            by_test.setdefault(trials[i].test, []).append(i)
    turns = [i for turn in range(most) for own in by_test.values() for i in own[turn : turn + 1]][:most]
    classes, items = texts.target.classes, []
    for i in turns:
        trial = trials[i]
        label = f"{spoken(trial.test)}, model: {verdict(logits[i], classes)}"
        if trial.row < 0:  # a template is no sample
            items.append(Excerpt(sample_id="", texts=(MarkedText(label=label, text=trial.text[:_LONGEST]),)))
            continue
        original = texts.text(trial.row)[:_LONGEST]
        before, after = differences(original, trial.text[:_LONGEST])
        own = MarkedText(label=f"model: {verdict(base[trial.row], classes)}", text=original, marks=before)
        changed = MarkedText(label=label, text=trial.text[:_LONGEST], marks=after)
        items.append(Excerpt(sample_id=str(texts.samples.names[trial.row]), texts=(own, changed)))
    if items:
        yield Excerpts(id="failures", title="Cases that the model fails", items=tuple(items))
