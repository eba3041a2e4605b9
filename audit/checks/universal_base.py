"""Checks of attacks that are fitted once, on one half of the samples, and judged on the other half."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...attacks.statistics import logit_interval
from ...reports.record import Chart, Evidence, Figure, Finding, Gallery, Item, Line, Metric, Picture, Result, Severity
from ..errors import DataError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .images import Images, compact, verdict
from .metrics import by_name, estimate, percent, rate, undefined
from .outputs import same_predictions
from .shift_search import predicts

_LOSSES: tuple[tuple[float, Severity], ...] = ((0.75, "critical"), (0.4, "high"), (0.15, "medium"), (0.05, "low"))
_FEWEST, _SHOWN = 4, 6
ARMS = ("attack", "control")


class UniversalCheck(Check):
    """Base: fits on every other sample, applies to the rest, and compares with the same at random."""

    requires: ClassVar[frozenset[Access]] = frozenset({"gradients"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    standards: ClassVar[tuple[str, ...]] = standards.EVASION
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of the held-out samples classified as labelled.",
        "robust_accuracy": "Share classified as labelled under the attack, over the repeats.",
        "attack_success_rate": "Without a target: share of the held-out samples classified correctly that the attack "
        "overturns. With a target: share of those of other classes that it turns into the target.",
        "control_success_rate": "The same with a random control in place of the attack: what chance achieves.",
    }
    words: ClassVar[str]
    """What is put on the images, for sentences: ``a patch``."""

    steps: int = Field(default=200, ge=1, description="Gradient steps of the fit.")
    target: int | None = Field(default=None, ge=0, description="Class to make the model choose; none: any wrong one.")
    limit: int | None = Field(default=None, ge=4, description="Use at most so many samples, evenly spaced.")
    batch_size: int | None = Field(default=None, ge=1, description="Images per step of the fit; 64 if left out.")

    @property
    def repeats(self) -> int:
        """How often the attack is applied to each held-out sample."""
        return 1

    @abstractmethod
    def fit(self, images: Images, goal: Tensor, seed: int) -> dict[str, Tensor]:
        """Tensors named ``attack`` and ``control`` that :meth:`applied` needs. ``goal`` ``(n,)``: labels or targets."""

    @abstractmethod
    def applied(self, tensor: Tensor, images: Images, repeat: int, seed: int) -> Tensor:
        """The images ``(n, c, h, w)`` in 0..1 with the attack or the control on them, on the CPU."""

    def within(self, tensor: Tensor) -> bool:
        """Whether the attack or control keeps to the configured limits."""
        return bool(tensor.isfinite().all())

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        fitting, held_out = self._halves(target, samples)
        context.progress.start(self.title, len(held_out) * (1 + 2 * self.repeats))
        tensors = self.fit(fitting, self._goal(fitting), context.seed)
        context.progress.advance(len(held_out))
        clean = held_out.logits(held_out.x, None)
        predictions = {arm: self._predictions(tensors[arm], held_out, context) for arm in ARMS}
        metrics = tuple(self._metrics(clean.argmax(1), held_out.y, predictions))
        evidence, figures = self._shown(held_out, clean, tensors, predictions, context)
        named = by_name(metrics)
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=self._summary(named),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}, exclude_none=True),
            metrics=metrics,
            findings=tuple(self._findings(named)),
            figures=(self._bars(named), *figures),
            evidence=evidence,
            warnings=() if named["attack_success_rate"].n else ("No held-out sample to attack: rates are undefined.",),
            not_covered=(
                "Longer fits, fits on more data, and attacks fitted on another model of the same kind.",
                *(() if self.target is not None else ("Attacks towards a chosen class.",)),
            ),
            references=self.references,
            standards=self.standards,
            forwards=len(held_out) * (1 + 2 * self.repeats) + self.steps * min(self.batch_size or 64, len(fitting)),
            backwards=self.steps * min(self.batch_size or 64, len(fitting)),
        )

    def _halves(self, target: Target, samples: Samples) -> tuple[Images, Images]:
        images = Images.of(target, samples, self.limit)
        if len(images) < _FEWEST:
            raise DataError(f"{len(images)} samples are too few: half of them fit the attack, the rest judge it")
        if self.target is not None and self.target >= len(target.classes):
            raise DataError(f"target is {self.target}, but the model has classes 0 to {len(target.classes) - 1}")
        # Shuffled by stream, since data that alternate between classes would give each half its own.
        order = images.streams(0).fork(11).uniform((1,)).squeeze(1).argsort(stable=True)
        return images.select(order[::2].sort().values), images.select(order[1::2].sort().values)

    def _goal(self, images: Images) -> Tensor:
        return images.y if self.target is None else torch.full_like(images.y, self.target)

    def _predictions(self, tensor: Tensor, images: Images, context: Context) -> Tensor:
        """Classes ``(repeats, n)``."""
        rows = []
        for repeat in range(self.repeats):
            rows.append(images.logits(self.applied(tensor, images, repeat, context.seed), None).argmax(1))
            context.progress.advance(len(images))
        return torch.stack(rows)

    def _metrics(self, clean: Tensor, y: Tensor, predictions: Mapping[str, Tensor]) -> Iterator[Metric]:
        n, right = len(y), clean == y
        yield rate("clean_accuracy", int(right.sum()), n, label="Clean accuracy, held-out half", higher_is_better=True)
        kept = (predictions["attack"] == y).double().mean(0)
        label = f"Accuracy under {self.words}"
        yield _share("robust_accuracy", kept, label=label, higher_is_better=True)
        at_risk = right if self.target is None else right & (y != self.target)
        for arm, label in (("attack", f"Success of {self.words}"), ("control", "Success of a random control")):
            hit = predictions[arm] != y if self.target is None else predictions[arm] == self.target
            yield _share(f"{arm}_success_rate", hit.double().mean(0)[at_risk], label=label, higher_is_better=False)

    def _summary(self, metrics: Mapping[str, Metric]) -> str:
        attack, control = metrics["attack_success_rate"], metrics["control_success_rate"]
        if attack.value is None or control.value is None or attack.ci_low is None or attack.ci_high is None:
            return f"No held-out sample was there for {self.words} to overturn."
        goal = "overturns" if self.target is None else f"turns into class {self.target}"
        return (
            f"One and the same attack, {self.words} fitted on other images, {goal} {percent(attack.value)} (95 % "
            f"interval {percent(attack.ci_low)} to {percent(attack.ci_high)}) of the correct predictions on {attack.n} "
            f"images it has not seen; a random control {percent(control.value)}. A longer fit may find a stronger one."
        )

    def _findings(self, metrics: Mapping[str, Metric]) -> Iterator[Finding]:
        attack, control = metrics["attack_success_rate"], metrics["control_success_rate"]
        if attack.value is None or control.value is None:
            return
        gain = attack.value - control.value
        yield Finding(
            severity=_severity(gain),
            title=f"{self.words[0].upper()}{self.words[1:]} that fits all images defeats {percent(attack.value)} "
            "of correct predictions",
            detail=f"Made once and put on {attack.n} images it was not fitted on. A random control defeats "
            f"{percent(control.value)}; the severity is that of the difference.",
            remedy="Adversarial training, or training with occlusions, lowers it." if gain >= 0.15 else "",
            standards=self.standards,
        )

    def _bars(self, metrics: Mapping[str, Metric]) -> Chart:
        shown = [metrics[f"{arm}_success_rate"] for arm in ARMS]
        return Chart(
            id="success",
            title="Success of the attack and of a random control",
            caption="Both on the held-out images, with 95 % intervals.",
            style="bar",
            x_label="put on the image",
            y_label="success rate",
            y_range=(0, 1),
            categories=("attack", "random control"),
            lines=(
                Line(
                    name="success rate",
                    x=(0.0, 1.0),
                    y=tuple(m.value for m in shown),
                    low=tuple(m.ci_low for m in shown),
                    high=tuple(m.ci_high for m in shown),
                ),
            ),
        )

    def _shown(
        self,
        images: Images,
        clean: Tensor,
        tensors: Mapping[str, Tensor],
        predictions: Mapping[str, Tensor],
        context: Context,
    ) -> tuple[tuple[Evidence, ...], tuple[Figure, ...]]:
        k = len(images.target.classes)
        scores = {f"{arm}_predictions": compact(own, k) for arm, own in predictions.items()}
        saved = {**tensors, **scores, "ids": images.ids, "labels": images.y, "clean_logits": clean}
        files = [context.evidence("universal", saved)]
        rows = ((clean.argmax(1) == images.y) & (predictions["attack"][0] != images.y)).nonzero().flatten()[:_SHOWN]
        if len(rows) == 0:
            return tuple(files), ()
        shown = images.select(rows)
        attacked = {arm: self.applied(tensors[arm], shown, 0, context.seed) for arm in ARMS}
        files.append(context.evidence("gallery", {"clean": shown.x, **attacked}, name="gallery"))
        logits = {"clean": clean[rows], **{arm: shown.logits(x, None) for arm, x in attacked.items()}}
        return tuple(files), (_gallery(shown, logits, files[-1].path),)

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        _, images = self._halves(target, samples)
        recorded = context.read_evidence(result.evidence[0])
        same = torch.equal(recorded["ids"], images.ids) and torch.equal(recorded["labels"], images.y)
        yield Claim("the attack was judged on the audited samples and labels, on the half it was not fitted on", same)
        if not same:
            return
        agree = same_predictions(images.logits(images.x, None), recorded["clean_logits"])
        yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)} samples")
        predictions = {arm: recorded[f"{arm}_predictions"].long() for arm in ARMS}
        for arm in ARMS:
            yield Claim(f"the {arm} keeps to its limits", self.within(recorded[arm]))
            hits = 0
            for repeat, own in enumerate(predictions[arm]):
                x = self.applied(recorded[arm], images, repeat, context.seed)
                hits += int(predicts(images.logits(x, None), own).sum())
            total = predictions[arm].numel()
            yield Claim(f"the model predicts as recorded under the {arm}", hits == total, f"{hits} of {total}")
        for metric in self._metrics(recorded["clean_logits"].argmax(1), images.y, predictions):
            claimed = result.metric(metric.name)
            value = None if claimed is None else claimed.value
            same = value == metric.value or abs((value or 0.0) - (metric.value or 0.0)) <= 1e-9
            yield Claim(f"{metric.name} follows from the recorded predictions", same, f"{value}, again {metric.value}")


def _share(name: str, shares: Tensor, *, label: str, higher_is_better: bool) -> Metric:
    """The mean of each sample's share over its repeats; the samples, not the repeats, are independent."""
    n = len(shares)
    if n == 0:
        return undefined(name, label=label, unit="rate", higher_is_better=higher_is_better)
    value = float(shares.mean().clamp(0, 1))
    variance = float(shares.var()) / n if n > 1 else 0.0
    interval = logit_interval(value, variance, n) if n > 1 else (0.0, 1.0)
    method = "logit-normal over samples"
    return estimate(
        name, value, interval, n, label=label, higher_is_better=higher_is_better, method=method, unit="rate"
    )


def _severity(gain: float) -> Severity:
    for least, level in _LOSSES:
        if gain >= least:
            return level
    return "info"


def _gallery(images: Images, logits: Mapping[str, Tensor], evidence: str) -> Gallery:
    """Clean, attacked and control image of each sample, with what the model says of each."""
    items = [
        Item(
            index=i,
            sample_id=str(name),
            captions=tuple(verdict(own[i], images.samples.classes) for own in logits.values()),
        )
        for i, name in enumerate(images.samples.names)
    ]
    return Gallery(
        id="gallery",
        title="The same attack on images it was not fitted on",
        caption="Prediction and confidence under each image.",
        evidence=evidence,
        pictures=(
            Picture(tensor="clean", title="clean"),
            Picture(tensor="attack", title="attack"),
            Picture(tensor="control", title="random control"),
        ),
        items=tuple(items),
    )
