"""Whether pictures of the classes can be drawn from the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import t as student
from torch import Tensor

from ...privacy.inversion.gradient import GradientInversion, likeness
from ...privacy.shadow.fresh import fresh
from ...reports.record import Finding, Gallery, Item, Metric, Picture, Result, Table
from ..errors import DataError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context, encoded
from .metrics import by_name, estimate, percent, rate, recomputed

Floats = NDArray[np.float64]
Tensors = dict[str, Tensor]


class Inversion(Check):
    """Searches, class by class, a picture that the model is sure of, and compares it with the class's mean picture."""

    name: ClassVar[str] = "inversion"
    title: ClassVar[str] = "Model inversion"
    question: ClassVar[str] = "Can its classes be drawn from it?"
    requires: ClassVar[frozenset[Access]] = frozenset({"gradients"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    references: ClassVar[tuple[str, ...]] = (
        "Fredrikson et al., Model Inversion Attacks that Exploit Confidence Information, CCS 2015",
        "Mahendran and Vedaldi, Understanding Deep Image Representations by Inverting Them, arXiv 1412.0035",
    )
    standards: ClassVar[tuple[str, ...]] = standards.INVERSION
    metrics: ClassVar[Mapping[str, str]] = {
        "similarity": "Correlation of the pictures drawn with the mean picture of their class, both around the mean of "
        "all classes; 0 when they show nothing of it.",
        "baseline_similarity": "The same for a model of this architecture that learned nothing.",
        "similarity_gain": "Mean difference of the two, picture by picture: what the model gives away.",
        "identified": "Share of pictures that are closer to the mean of their own class than to any other; guessing "
        "would give 1 / number of classes.",
    }
    cost: ClassVar[str] = "2 x steps forward and backward passes per class and attempt"

    train: str | None = Field(
        default=None, description="Data whose class means the pictures are compared with; the audited data if left out."
    )
    attempts: int = Field(default=2, ge=1, description="Pictures per class.")
    steps: int = Field(default=200, ge=2, description="Steps of the search.")
    lr: float = Field(default=0.05, gt=0, description="Step size, in units of the input's range.")
    tv: float = Field(default=0.3, ge=0, description="Weight of total variation: higher is smoother.")
    prior: float = Field(default=10.0, ge=0, description="Weight of the distance to the prior picture.")
    shift: int = Field(default=0, ge=0, description="Random shift in each step, in pixels: helps on large pictures.")
    start: Literal["mean", "grey"] = Field(
        default="grey", description="Prior picture: mean of the data, which the attacker must know, or plain grey."
    )

    def files(self) -> tuple[str, ...]:
        return () if self.train is None else (self.train,)

    def attack(self) -> GradientInversion:
        return GradientInversion(steps=self.steps, lr=self.lr, tv=self.tv, prior=self.prior, shift=self.shift)

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        means, present = self._means(target, samples, context)
        wanted = torch.from_numpy(present).repeat_interleave(self.attempts)
        context.progress.start(self.title, 2 * self.steps)
        prior = means.mean(0) if self.start == "mean" else None
        drawn, blank = (
            self.attack()(
                module,
                wanted,
                tuple(means.shape[1:]),
                bounds=target.bounds,
                mean=prior,
                seed=context.seed % 2**31,
                progress=context.progress.advance,
            )
            for module in (target.module, fresh(target.module, context.seed % 2**31).eval())
        )
        tensors = {"drawn": drawn, "baseline": blank, "means": means, "of_class": wanted}
        with torch.no_grad():
            tensors["logits"] = target.module(drawn.to(target.device)).float().cpu()
        found = _measured(tensors, present)
        evidence = context.evidence("images", {**tensors, "own_means": means[_places(wanted, present)]})
        metrics = tuple(_metrics(found))
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=f"Pictures drawn from the model correlate by {found.own.mean():.2f} with the mean picture of their "
            f"class, those from an untrained model by {found.blank.mean():.2f}; {percent(float(found.hit.mean()))} are "
            f"closest to their own class, where guessing gives {percent(1 / len(present))}.",
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(_findings(metrics, len(present))),
            figures=(_gallery(evidence.path, tensors, found, target.classes), _table(found, wanted, target.classes)),
            evidence=(evidence,),
            warnings=tuple(_warnings(present, target)),
            not_covered=(
                "Inversion with a generative model of such pictures, which draws sharper ones.",
                "Reconstruction of single training records: a mean picture is no record.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=self.steps * len(wanted),
            backwards=self.steps * len(wanted),
        )

    def _means(self, target: Target, samples: Samples, context: Context) -> tuple[Tensor, NDArray[np.int64]]:
        """Mean picture ``(p, c, h, w)`` of each class that has samples, and which classes these are."""
        x, y = encoded(target, samples if self.train is None else context.samples(self.train))
        present = np.unique(y.numpy())
        if len(present) < 2:
            raise DataError("inversion compares classes: the data have one only")
        return torch.stack([x[y == int(c)].mean(0) for c in present]), present

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        recorded = context.read_evidence(result.evidence[0])
        means, present = self._means(target, samples, context)
        same = means.shape == recorded["means"].shape and torch.allclose(means, recorded["means"], atol=1e-5)
        yield Claim("the class means are those of these data", same)
        if not same:
            return
        with torch.no_grad():
            logits = target.module(recorded["drawn"].to(target.device)).float().cpu()
        close = torch.allclose(logits, recorded["logits"], rtol=1e-3, atol=1e-3)
        yield Claim("the model answers to the pictures as recorded", close)
        yield from recomputed(_metrics(_measured(recorded, present)), result, "pictures", 1e-5)


@dataclass(frozen=True, slots=True)
class Measured:
    """By picture: likeness to its own class for the model and for an untrained one; whether its own is the nearest."""

    own: Floats
    blank: Floats
    hit: NDArray[np.bool_]


def _places(wanted: Tensor, present: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.searchsorted(present, wanted.numpy()))


def _measured(tensors: Tensors, present: NDArray[np.int64]) -> Measured:
    means, place = tensors["means"], _places(tensors["of_class"], present)
    centre, rows = means.mean(0), torch.arange(len(tensors["of_class"]))
    alike = likeness(tensors["drawn"], means, centre)
    blank = likeness(tensors["baseline"], means, centre)
    return Measured(alike[rows, place].numpy(), blank[rows, place].numpy(), (alike.argmax(1) == place).numpy())


def _metrics(found: Measured) -> Iterator[Metric]:
    for name, values, label in (
        ("similarity", found.own, "Likeness to the class mean"),
        ("baseline_similarity", found.blank, "Likeness without learning"),
        ("similarity_gain", found.own - found.blank, "What the model adds"),
    ):
        better = None if name == "baseline_similarity" else False
        half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        mean = float(values.mean())
        yield estimate(
            name, mean, (mean - half, mean + half), len(values), label=label, higher_is_better=better, method="student"
        )
    yield rate("identified", int(found.hit.sum()), len(found.hit), label="Own class nearest", higher_is_better=False)


def _findings(metrics: tuple[Metric, ...], classes: int) -> Iterator[Finding]:
    found = by_name(metrics)
    gain, identified = found["similarity_gain"], found["identified"]
    leaks = (gain.ci_low or 0) > 0 and (identified.ci_low or 0) > 1 / classes
    if leaks:
        yield Finding(
            severity="medium" if (gain.ci_low or 0) > 0.3 else "low",
            title="The model shows what its classes look like",
            detail=f"Pictures drawn from it are {gain.value:.2f} more like their class's mean than those from an "
            f"untrained model (at least {gain.ci_low:.2f}). Where a class is a person, that is a likeness.",
            remedy="Where classes are people: do not give out gradients or precise scores; train with differential "
            "privacy by person.",
            standards=standards.INVERSION,
        )
        return
    yield Finding(
        severity="info",
        title="The pictures drawn show little of the classes",
        detail="They are no more like the class means than chance explains. Attacks with generative models find more.",
        standards=standards.INVERSION,
    )


def _gallery(path: str, tensors: Tensors, found: Measured, classes: tuple[str, ...]) -> Gallery:
    _, first = np.unique(tensors["of_class"].numpy(), return_index=True)
    return Gallery(
        id="drawn",
        title="Drawn from the model",
        caption="A picture of each class that the model is sure of, one from an untrained model, the mean.",
        evidence=path,
        pictures=(
            Picture(tensor="drawn", title="from the model"),
            Picture(tensor="baseline", title="untrained model"),
            Picture(tensor="own_means", title="mean of the class"),
        ),
        items=tuple(
            Item(
                index=int(i),
                sample_id=classes[int(tensors["of_class"][i])],
                captions=(
                    f"likeness {found.own[i]:.2f}",
                    f"{found.blank[i]:.2f}",
                    classes[int(tensors["of_class"][i])],
                ),
            )
            for i in first[:10]
        ),
    )


def _table(found: Measured, wanted: Tensor, classes: tuple[str, ...]) -> Table:
    rows = []
    for c in np.unique(wanted.numpy()):
        own = wanted.numpy() == c
        rows.append(
            (classes[c], float(found.own[own].mean()), float(found.blank[own].mean()), float(found.hit[own].mean()))
        )
    return Table(
        id="by_class",
        title="Likeness by class",
        columns=("class", "likeness", "untrained", "own class nearest"),
        rows=tuple(rows),
    )


def _warnings(present: NDArray[np.int64], target: Target) -> Iterator[str]:
    missing = len(target.classes) - len(present)
    if missing:
        yield f"{missing} classes have no samples to compare with and were left out."
