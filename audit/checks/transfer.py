"""Do adversarial inputs that were made for the original model also fool a variant of it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...attacks.evasion.pgd import PGD
from ...attacks.streams import Streams
from ...attacks.threat import Norm, Threat
from ...reports.record import Finding, Metric, Result, Table
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context, encoded
from .evasion import DEFAULT_EPS, Radius
from .evasion_measures import ball_text
from .evasion_search import module_logits
from .metrics import by_name, percent, rate
from .outputs import require_finite, same_predictions, spaced

_LOGITS = ("clean_logits", "adv_logits", "base_clean", "base_adv")


class Transfer(Check):
    """Attacks the original model and hands the result to the variant, as one who knows only the original would.

    Every input is attacked for all steps, also once it fools the original: inputs deep on the wrong side transfer
    best. On the original itself this is the attack's own success.
    """

    name: ClassVar[str] = "transfer"
    title: ClassVar[str] = "Transfer from the original model"
    question: ClassVar[str] = "Do adversarial inputs of the original model fool the variant?"
    requires: ClassVar[frozenset[Access]] = frozenset({"gradients"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image", "tabular"})
    references: ClassVar[tuple[str, ...]] = (
        "Papernot et al., Transferability in Machine Learning, arXiv 1605.07277",
        "Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083",
    )
    standards: ClassVar[tuple[str, ...]] = standards.BLACK_BOX_EVASION
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of samples classified as labelled.",
        "transfer_robust_accuracy": "Share of samples right on the clean input and on the adversarial input that was "
        "made for the original model.",
        "original_robust_accuracy": "The same for the original model: what the attack does where it was made.",
        "transfer_rate": "Of the samples both models get right and the attack breaks on the original, the share that "
        "it breaks here too.",
    }
    cost: ClassVar[str] = "one forward and backward pass of the original model per step and sample"

    norm: Literal["linf", "l2", "l1"] = Field(default="linf", description="How perturbations are measured.")
    eps: Radius = Field(
        default_factory=lambda data: DEFAULT_EPS[data.get("norm", "linf")],
        gt=0,
        description="Radius in input units, also as a fraction: 8/255. By norm: linf 8/255, l2 0.5, l1 12.",
    )
    steps: int = Field(default=40, ge=1, description="Gradient steps of PGD on the original model.")
    limit: int | None = Field(default=None, ge=1, description="Attack at most so many samples, evenly spaced.")
    batch_size: int | None = Field(default=None, ge=1, description="Largest batch; chosen by input size if left out.")

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        samples = spaced(samples, self.limit)
        x, y = encoded(target, samples)
        base = target.base or target
        ids = torch.from_numpy(samples.ids)
        x_adv = self._attacked(base, x, y, ids, context)
        size = self.batch_size or context.batch_size
        logits = [module_logits(model, inputs, size) for model in (target, base) for inputs in (x, x_adv)]
        require_finite(logits[0], samples)
        tensors: dict[str, Tensor] = dict(zip(_LOGITS, logits, strict=True))
        evidence = context.evidence("adversarial", {"ids": ids, "labels": y, "x_adv": x_adv, **tensors})
        measured = Measured.of(y, tensors, self.norm, self.eps)
        metrics = tuple(measured.metrics())
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=f"{self.title}: {ball_text(self.norm, self.eps)}",
            summary=_summary(by_name(metrics), own=target.base is None),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}, exclude_none=True),
            metrics=metrics,
            findings=() if target.base is None else tuple(_findings(measured)),
            figures=(measured.table(),),
            evidence=(evidence,),
            not_covered=(
                "Attackers who know the variant: the `evasion` check attacks it as it is.",
                "Transfer from models other than the original.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=len(y) * (self.steps + 4),
            backwards=len(y) * self.steps,
        )

    def _attacked(self, base: Target, x: Tensor, y: Tensor, ids: Tensor, context: Context) -> Tensor:
        attack, threat = PGD(steps=self.steps, early_stop=False), Threat(self.norm, self.eps, bounds=base.bounds)
        streams, parts = Streams.from_seed(context.seed, ids), []
        context.progress.start(self.title, len(y))
        for rows in torch.arange(len(y)).split(self.batch_size or context.batch_size or 128):
            inputs, labels = x[rows].to(base.device), y[rows].to(base.device)
            own = streams.select(rows).to(base.device)
            parts.append(attack(base.module, inputs, labels, threat, generator=own).detach().cpu())
            context.progress.advance(len(rows))
        return torch.cat(parts)

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        samples = spaced(samples, self.limit)
        x, y = encoded(target, samples)
        recorded = context.read_evidence(result.evidence[0])
        same = torch.equal(recorded["ids"], torch.from_numpy(samples.ids)) and torch.equal(recorded["labels"], y)
        yield Claim("the attack ran on the audited samples and labels", same)
        if not same:
            return
        x_adv = recorded["x_adv"]
        inside = int(Threat(self.norm, self.eps, bounds=target.bounds).contains(x_adv, x).sum())
        yield Claim("adversarial inputs lie in ball and bounds", inside == len(y), f"{inside} of {len(y)}")
        size = self.batch_size or context.batch_size
        for model, of_clean, of_adv in (
            (target, "clean_logits", "adv_logits"),
            (target.base or target, "base_clean", "base_adv"),
        ):
            whose = "model" if model is target else "original model"
            for inputs, key in ((x, of_clean), (x_adv, of_adv)):
                agree = same_predictions(module_logits(model, inputs, size), recorded[key])
                what = f"the {whose} predicts as recorded ({key})"
                yield Claim(what, bool(agree.all()), f"{agree.sum()} of {len(agree)}")
        for again in Measured.of(y, recorded, self.norm, self.eps).metrics():
            metric = result.metric(again.name)
            value = None if metric is None else metric.value
            yield Claim(f"{again.name} follows from the predictions", value == again.value, f"{value}, {again.value}")


@dataclass(frozen=True, slots=True)
class Measured:
    """Bool ``(n,)``: right on clean and on adversarial inputs, here and on the original model."""

    clean: np.ndarray
    adversarial: np.ndarray
    base_clean: np.ndarray
    base_adversarial: np.ndarray
    norm: Norm
    eps: float

    @classmethod
    def of(cls, y: Tensor, logits: Mapping[str, Tensor], norm: Norm, eps: float) -> Measured:
        clean, adversarial, base_clean, base_adversarial = ((logits[key].argmax(1) == y).numpy() for key in _LOGITS)
        return cls(clean, adversarial, base_clean, base_adversarial, norm, eps)

    @property
    def robust(self) -> np.ndarray:
        return self.clean & self.adversarial

    @property
    def telling(self) -> np.ndarray:
        """Samples that both models get right and the attack breaks on the original."""
        return self.clean & self.base_clean & ~self.base_adversarial

    def metrics(self) -> Iterator[Metric]:
        n, ball = len(self.clean), ball_text(self.norm, self.eps)
        yield rate("clean_accuracy", int(self.clean.sum()), n, label="Clean accuracy", higher_is_better=True)
        label = f"Accuracy under attacks made for the original, {ball}"
        yield rate("transfer_robust_accuracy", int(self.robust.sum()), n, label=label, higher_is_better=True)
        count = int((self.base_clean & self.base_adversarial).sum())
        label = f"The original's accuracy under the same, {ball}"
        yield rate("original_robust_accuracy", count, n, label=label, higher_is_better=True)
        fell, total = int((self.telling & ~self.adversarial).sum()), int(self.telling.sum())
        label = "Adversarial inputs of the original that work here"
        yield rate("transfer_rate", fell, total, label=label, higher_is_better=False)

    def table(self) -> Table:
        """How the two models fare on each other's samples."""
        both = self.clean & self.base_clean
        rows = [
            (text, int((both & (self.base_adversarial == there) & (self.adversarial == here)).sum()))
            for text, there, here in (
                ("both stand", True, True),
                ("only the original falls", False, True),
                ("only this model falls", True, False),
                ("both fall", False, False),
            )
        ]
        return Table(
            id="both",
            title="Samples that both models get right, under the attack on the original",
            columns=("outcome", "samples"),
            rows=tuple(rows),
        )


def _summary(metrics: Mapping[str, Metric], *, own: bool) -> str:
    robust, transferred = metrics["transfer_robust_accuracy"], metrics["transfer_rate"]
    assert robust.value is not None
    if own:
        return f"Attacks made for this model leave {percent(robust.value)} of {robust.n} samples right."
    worked = "none of them was broken there" if transferred.value is None else f"{percent(transferred.value)} work here"
    return (
        f"Attacks made for the original model leave {percent(robust.value)} of {robust.n} samples right; of the "
        f"adversarial inputs that fool the original {worked}."
    )


def _findings(measured: Measured) -> Iterator[Finding]:
    total = int(measured.telling.sum())
    fell = int((measured.telling & ~measured.adversarial).sum())
    if fell > total / 2:
        yield Finding(
            severity="medium",
            title="Who attacks the original model breaks this one too",
            detail=f"{fell} of {total} adversarial inputs made without knowledge of the variant fool it: keeping it "
            "secret is no protection.",
            standards=standards.BLACK_BOX_EVASION,
        )
