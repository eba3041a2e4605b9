"""Whether the model can be copied by asking it questions, and what such a copy is good for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ...attacks.evasion.pgd import PGD
from ...attacks.statistics import rate_interval, sum_interval
from ...attacks.streams import Streams
from ...attacks.threat import Norm, Threat, parse_eps
from ...privacy.extraction.copying import CopyConfig, Extraction, steal
from ...privacy.shadow.fresh import fresh
from ...reports.record import Chart, Finding, Line, Metric, Result
from ..errors import DataError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context, encoded
from .metrics import by_name, estimate, percent, plain, rate, recomputed
from .outputs import all_logits, same_predictions, spaced

Tensors = dict[str, Tensor]


class ExtractionCheck(Check):
    """Trains a copy on the answers to a budget of queries, counts how often it agrees, and attacks through it."""

    name: ClassVar[str] = "extraction"
    title: ClassVar[str] = "Model extraction"
    question: ClassVar[str] = "Can it be copied by asking it questions?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image", "tabular"})
    references: ClassVar[tuple[str, ...]] = (
        "Orekondy et al., Knockoff Nets, arXiv 1812.02766",
        "Correia-Silva et al., Copycat CNN, arXiv 1806.05476",
        "Papernot et al., Practical Black-Box Attacks against Machine Learning, arXiv 1602.02697",
    )
    standards: ClassVar[tuple[str, ...]] = standards.EXTRACTION
    metrics: ClassVar[Mapping[str, str]] = {
        "fidelity": "Share of held-out samples on which copy and model predict the same class.",
        "copy_accuracy": "Accuracy of the copy on held-out samples.",
        "accuracy": "Accuracy of the model on the same samples.",
        "transfer_success_rate": "Share of the samples it gets right that PGD on the copy makes it get wrong.",
        "transfer_control": "The same with a copy that was never trained: what noise of this size does by itself.",
        "transfer_gain": "Difference of the two: what the copy adds to an attacker.",
        "queries": "Questions put to the model.",
    }
    cost: ClassVar[str] = "budget queries to the model, and the training of a copy on the answers"

    attack: Extraction = Field(
        default="knockoff",
        description="knockoff (scores), knockoff_adaptive (in rounds), copycat (labels).",
    )
    pool: str | None = Field(
        default=None,
        description="Inputs that the attacker has, labels unused; half of the audited samples if left out, which "
        "assumes that he has inputs like the model's own.",
    )
    budget: int = Field(default=1000, ge=10, description="Queries to the model, at most.")
    architecture: Literal["same", "small"] = Field(
        default="small", description="The copy: the model's own architecture, or a small network."
    )
    epochs: int = Field(default=30, ge=1, description="Passes of the copy over the answers.")
    lr: float = Field(default=1e-3, gt=0, description="Learning rate of the copy.")
    norm: Norm = Field(default="linf", description="Of the transfer attack: linf, l2 or l1.")
    eps: float = Field(default=8 / 255, description="Radius of the transfer attack, in input units or as a fraction.")
    steps: int = Field(default=20, ge=1, description="PGD steps on the copy.")
    limit: int | None = Field(default=1000, ge=2, description="At most so many held-out samples.")

    @field_validator("eps", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> float:
        return parse_eps(value)

    def files(self) -> tuple[str, ...]:
        return () if self.pool is None else (self.pool,)

    def required(self) -> frozenset[Access]:
        own: set[Access] = {"labels"} if self.attack == "copycat" else {"scores"}
        if self.architecture == "same":
            own.add("gradients")
        return frozenset(own)

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        pool, judged = self._shares(target, samples, context)
        x, y = encoded(target, judged)
        budget = min(self.budget, len(pool))
        thief = self._copy(target, x, context.seed)
        config = CopyConfig(self.attack, budget, self.epochs, lr=self.lr, seed=context.seed % 2**31)
        rounds = config.rounds if self.attack == "knockoff_adaptive" else 1
        context.progress.start(self.title, sum(budget * (r + 1) / rounds for r in range(rounds)) * self.epochs)
        stolen = steal(_asker(target), thief, pool, config, on_samples=context.progress.advance)
        tensors = {
            "logits": all_logits(target, judged, context.batch_size),
            "copy_logits": _in_batches(stolen.module, x, target.device),
            "labels": y,
            "ids": torch.from_numpy(judged.ids),
            **self._transferred(target, stolen.module, x, y, judged, context.seed),
        }
        figures = _counted(tensors)
        metrics = tuple(self._metrics(figures, budget))
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=f"After {budget} queries a copy agrees with the model on {percent(figures.same / figures.n)} of "
            f"held-out samples. Adversarial inputs made on the copy fool the model on "
            f"{percent(figures.fooled / max(figures.right, 1))} of what it gets right "
            f"({percent(figures.control / max(figures.right, 1))} with an untrained copy).",
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(_findings(metrics, figures, budget)),
            figures=(_chart(figures),),
            evidence=(context.evidence("adversarial", tensors),),
            warnings=tuple(self._warnings(budget, pool, judged)),
            not_covered=(
                "Attackers with larger budgets, better suited inputs or architectures, or generated queries.",
                "Defences that watch the stream of queries.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=budget + len(y) * 3,
        )

    def _shares(self, target: Target, samples: Samples, context: Context) -> tuple[Tensor, Samples]:
        """The attacker's inputs, and the samples on which the copy is judged, which are none of them."""
        if self.pool is not None:
            return encoded(target, context.samples(self.pool))[0], spaced(samples, self.limit)
        if len(samples) < 20:
            raise DataError(f"{len(samples)} samples are too few to be shared out: give the attacker's inputs as pool")
        order = np.random.default_rng(context.seed).permutation(len(samples))
        half = len(samples) // 2
        judged = samples.select(np.sort(order[half:]))
        return encoded(target, samples.select(order[:half]))[0], spaced(judged, self.limit)

    def _copy(self, target: Target, x: Tensor, seed: int) -> nn.Module:
        classes = len(target.classes)
        module = target.module if self.architecture == "same" else small_network(tuple(x.shape[1:]), classes)
        return fresh(module, seed % 2**31).to(target.device)

    def _transferred(
        self, target: Target, thief: nn.Module, x: Tensor, y: Tensor, judged: Samples, seed: int
    ) -> Tensors:
        """Inputs attacked through the copy and through an untrained one, and what the model says to them."""
        threat = self.threat(target)
        attack = PGD(steps=self.steps, early_stop=False)
        blank = self._copy(target, x, seed + 1).eval()
        found: Tensors = {}
        for name, module in (("adversarial", thief), ("control", blank)):
            streams = Streams.from_seed(seed, torch.from_numpy(judged.ids))
            parts = [
                attack(
                    module,
                    x[rows].to(target.device),
                    y[rows].to(target.device),
                    threat,
                    generator=streams.select(rows).to(target.device),
                ).cpu()
                for rows in torch.arange(len(x)).split(256)
            ]
            found[name] = torch.cat(parts)
            found[f"{name}_logits"] = _in_batches(target.module, found[name], target.device)
        return found

    def threat(self, target: Target) -> Threat:
        return Threat(self.norm, self.eps, bounds=target.bounds)

    def _metrics(self, figures: Figures, budget: int) -> Iterator[Metric]:
        n, right = figures.n, figures.right
        yield rate("fidelity", figures.same, n, label="Agreement of copy and model", higher_is_better=False)
        yield rate("copy_accuracy", figures.copied, n, label="Accuracy of the copy", higher_is_better=None)
        yield rate("accuracy", right, n, label="Accuracy of the model", higher_is_better=True)
        yield rate(
            "transfer_success_rate", figures.fooled, right, label="Fooled through the copy", higher_is_better=False
        )
        yield rate("transfer_control", figures.control, right, label="Fooled without it", higher_is_better=None)
        if right:
            shares = figures.fooled / right, figures.control / right
            ends = rate_interval(figures.fooled, right), rate_interval(figures.control, right)
            yield estimate(
                "transfer_gain",
                shares[0] - shares[1],
                sum_interval((1, -1), shares, ends),
                right,
                label="What the copy adds to an attack",
                higher_is_better=False,
                method="wilson (sum)",
                unit="rate",
            )
        yield plain("queries", budget, None, label="Queries", unit="", higher_is_better=None)

    def _warnings(self, budget: int, pool: Tensor, judged: Samples) -> Iterator[str]:
        if budget < self.budget:
            yield f"The attacker's pool has {len(pool)} inputs: the budget of {self.budget} was not spent."
        if len(judged) < 100:
            yield f"The copy is judged on {len(judged)} samples only."

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        recorded = context.read_evidence(result.evidence[0])
        _, judged = self._shares(target, samples, context)
        x, y = encoded(target, judged)
        same = torch.equal(recorded["ids"], torch.from_numpy(judged.ids)) and torch.equal(recorded["labels"], y)
        yield Claim("the copy was judged on these samples", same)
        if not same:
            return
        for name, inputs in (
            ("logits", x),
            ("adversarial_logits", recorded["adversarial"]),
            ("control_logits", recorded["control"]),
        ):
            asked = _in_batches(target.module, inputs, target.device)
            yield Claim(f"the model answers as recorded ({name})", bool(same_predictions(asked, recorded[name]).all()))
        inside = bool(self.threat(target).contains(recorded["adversarial"], x).all())
        yield Claim("the adversarial inputs lie in the ball and bounds", inside)
        queries = result.metric("queries")
        asked = 0 if queries is None else int(queries.value or 0)
        yield from recomputed(self._metrics(_counted(recorded), asked), result, "answers")


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts: samples, agreements, right answers of copy and model, and of the latter those fooled either way."""

    n: int
    same: int
    copied: int
    right: int
    fooled: int
    control: int


def _counted(tensors: Tensors) -> Figures:
    y = tensors["labels"]
    said, copied = tensors["logits"].argmax(1), tensors["copy_logits"].argmax(1)
    right = said == y
    fooled, control = (
        int((right & (tensors[f"{name}_logits"].argmax(1) != y)).sum()) for name in ("adversarial", "control")
    )
    return Figures(len(y), int((said == copied).sum()), int((copied == y).sum()), int(right.sum()), fooled, control)


def _findings(metrics: tuple[Metric, ...], figures: Figures, budget: int) -> Iterator[Finding]:
    found = by_name(metrics)
    fidelity, gain = found["fidelity"], found.get("transfer_gain")
    low = fidelity.ci_low or 0.0
    if low > 0.9:
        yield Finding(
            severity="medium",
            title="A copy agrees with the model nearly everywhere",
            detail=f"{percent(figures.same / figures.n)} agreement (at least {percent(low)}) after {budget} queries.",
            remedy="Limit and watch queries; give labels or rounded scores instead of probabilities.",
            standards=standards.EXTRACTION,
        )
    else:
        yield Finding(
            severity="info",
            title="The copy differs from the model",
            detail=f"{percent(figures.same / figures.n)} agreement after {budget} queries; more would bring it closer.",
            standards=standards.EXTRACTION,
        )
    if gain is not None and gain.ci_low is not None and gain.ci_low > 0.05:
        yield Finding(
            severity="high" if gain.ci_low > 0.25 else "medium",
            title="A copy is enough to attack the model",
            detail=f"Adversarial inputs made on the copy fool the model {percent(gain.value or 0)} more often (at "
            f"least {percent(gain.ci_low)}) than those made on an untrained one.",
            remedy="Robust training (see the adversarial_training variant): hiding the gradients does not help.",
            standards=standards.BLACK_BOX_EVASION,
        )


def _chart(figures: Figures) -> Chart:
    right = max(figures.right, 1)
    bars = (
        ("agreement", figures.same, figures.n),
        ("accuracy of copy", figures.copied, figures.n),
        ("accuracy of model", figures.right, figures.n),
        ("fooled through copy", figures.fooled, right),
        ("fooled without", figures.control, right),
    )
    ends = [rate_interval(count, n) for _, count, n in bars]
    return Chart(
        id="copy",
        title="The copy",
        caption="On samples that were not asked about.",
        style="bar",
        x_label="",
        y_label="share",
        y_range=(0, 1),
        categories=tuple(name for name, _, _ in bars),
        lines=(
            Line(
                name="share",
                x=tuple(float(i) for i in range(len(bars))),
                y=tuple(count / n for _, count, n in bars),
                low=tuple(low for low, _ in ends),
                high=tuple(high for _, high in ends),
            ),
        ),
    )


def small_network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """What a thief who knows nothing of the architecture might train: two convolutions, or two layers for rows."""
    if len(shape) == 3:
        return nn.Sequential(
            nn.Conv2d(shape[0], 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )
    width = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, classes))


def _asker(target: Target) -> Callable[[Tensor], Tensor]:
    return lambda x: _in_batches(target.module, x, target.device)


@torch.no_grad()
def _in_batches(module: nn.Module, x: Tensor, device: torch.device) -> Tensor:
    return torch.cat([module(part.to(device)).float().cpu() for part in x.split(512)])
