"""Within what radius the model's answers are proven, whatever the attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from ...defenses.smoothing import Smoothed
from ...reports.record import Finding, Metric, Result
from ..errors import UnsupportedError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .certification_bounds import Bounds
from .certification_case import Case, Certifier
from .certification_figures import charts
from .certification_measures import Measured
from .certification_smoothing import Smoothing
from .evasion import DEFAULT_EPS, Radius
from .evasion_measures import ball_text
from .metrics import by_name, percent

_VACUOUS = 0.05


class Certification(Check):
    """Counts the samples whose class is proven for every input in a ball, and attacks the same samples.

    `crown`, `crown_ibp` and `ibp` bound the logits of feed-forward and convolutional networks; `smoothing` certifies
    any model under Gaussian noise, for l2. `auto` takes smoothing for a smoothed variant and crown otherwise.
    """

    name: ClassVar[str] = "certification"
    title: ClassVar[str] = "Certified robustness"
    question: ClassVar[str] = "Within what radius is the answer proven, whatever the attack?"
    requires: ClassVar[frozenset[Access]] = frozenset({"gradients"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image", "tabular"})
    references: ClassVar[tuple[str, ...]] = (
        "Cohen et al., Certified Adversarial Robustness via Randomized Smoothing, arXiv 1902.02918",
        "Gowal et al., On the Effectiveness of Interval Bound Propagation, arXiv 1810.12715",
        "Zhang et al., Efficient Neural Network Robustness Certification with General Activation Functions, "
        "arXiv 1811.00866",
        "Zhang et al., Towards Stable and Efficient Training of Verifiably Robust Neural Networks, arXiv 1906.06316",
    )
    standards: ClassVar[tuple[str, ...]] = standards.EVASION
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of samples classified as labelled; where a smoothed classifier abstains it is wrong.",
        "certified_accuracy": "Share of samples proven to be classified as labelled for every input within eps.",
        "certified_accuracy_at_EPS": "The same at each further radius of `curve`.",
        "empirical_robust_accuracy": "Share of samples right on the clean input that a PGD attack within eps did not "
        "break. Never below the certified accuracy.",
        "contradicted": "Share of samples certified within eps and broken within eps all the same; above 0 something "
        "is wrong.",
        "abstained": "Share of samples on which the smoothed classifier does not decide (smoothing).",
        "mean_certified_radius": "Mean radius proven, wrong and undecided samples counting 0 (smoothing).",
    }
    cost: ClassVar[str] = (
        "smoothing: n0 + 2 n forward passes and 16 gradients per step and sample; crown: about one backward pass per "
        "undecided hidden unit and sample; ibp: two forward passes; and a PGD attack"
    )
    version: ClassVar[int] = 1

    method: Literal["auto", "smoothing", "ibp", "crown_ibp", "crown"] = Field(
        default="auto", description="auto, smoothing, ibp, crown_ibp (faster) or crown (tighter)."
    )
    norm: Literal["linf", "l2", "l1"] = Field(default="linf", description="Of the ball; smoothing certifies l2.")
    eps: Radius = Field(
        default_factory=lambda data: DEFAULT_EPS[data.get("norm", "linf")],
        gt=0,
        description="Radius in input units, also as a fraction: 8/255. By norm: linf 8/255, l2 0.5, l1 12.",
    )
    curve: tuple[Radius, ...] = Field(default=(), description="Further radii at which certified accuracy is reported.")
    sigma: float | None = Field(
        default=None, gt=0, description="Noise of smoothing, in input units; a smoothed variant brings its own."
    )
    n0: int = Field(default=100, ge=1, description="Draws that choose the class (smoothing).")
    n: int = Field(default=1000, ge=1, description="Draws that bound its probability (smoothing); the paper: 100000.")
    alpha: float = Field(default=0.001, gt=0, lt=1, description="Probability that a radius is wrong (smoothing).")
    steps: int = Field(default=20, ge=1, description="Gradient steps of the attack.")
    limit: int | None = Field(default=100, ge=1, description="Examine at most so many samples, evenly spaced.")
    batch_size: int | None = Field(default=None, ge=1, description="Largest batch; chosen by input size if left out.")

    @model_validator(mode="after")
    def _fits(self) -> Certification:
        if self.method == "smoothing" and self.norm != "l2":
            raise ValueError(f"smoothing certifies l2, not {self.norm}: give norm: l2")
        if self.sigma is not None and self.method not in ("smoothing", "auto"):
            raise ValueError(f"sigma is of method smoothing, not of {self.method}")
        if min(self.curve, default=1.0) <= 0:
            raise ValueError("a radius must be above 0; accuracy at radius 0 is always reported")
        return self

    @property
    def radii(self) -> tuple[float, ...]:
        """All radii examined, ascending."""
        return tuple(sorted({self.eps, *self.curve}))

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        case, certifier = self._case(target, samples), self._certifier(target)
        evidence = context.evidence("certificates", certifier.examine(case, context))
        measured = certifier.measured(case, context.read_evidence(evidence))
        metrics = tuple(measured.metrics())
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=f"{self.title}: {ball_text(self.norm, self.eps)}, {certifier.title}",
            summary=_summary(by_name(metrics), certifier.title, self.norm, self.eps),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}, exclude_none=True),
            metrics=metrics,
            findings=tuple(_findings(measured, certifier.title)),
            figures=tuple(charts(measured, certifier.title)),
            evidence=(evidence,),
            not_covered=(*certifier.caveats, f"Perturbations measured otherwise than by {self.norm}."),
            references=self.references,
            standards=self.standards,
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        case, certifier = self._case(target, samples), self._certifier(target)
        evidence = context.read_evidence(result.evidence[0])
        same = torch.equal(evidence["ids"], case.ids) and torch.equal(evidence["labels"], case.y)
        yield Claim("the certificates are about the audited samples and labels", same)
        if not same:
            return
        yield from certifier.claims(case, evidence, context)
        for again in certifier.measured(case, evidence).metrics():
            metric = result.metric(again.name)
            value = None if metric is None else metric.value
            agrees = value == again.value or (
                value is not None and again.value is not None and abs(value - again.value) <= 1e-9
            )
            yield Claim(f"{again.name} follows from the evidence", agrees, f"{value}, recomputed {again.value}")

    def _case(self, target: Target, samples: Samples) -> Case:
        return Case.of(target, samples, self.limit, self.norm, self.eps, self.radii)

    def _certifier(self, target: Target) -> Certifier:
        smoothed = target.module if isinstance(target.module, Smoothed) else None
        if self.method == "smoothing" or (self.method == "auto" and smoothed is not None):
            return self._smoothing(target, smoothed)
        method = "crown" if self.method == "auto" else self.method
        assert method != "smoothing"
        return Bounds(method, self.steps, self.batch_size)

    def _smoothing(self, target: Target, smoothed: Smoothed | None) -> Smoothing:
        if self.norm != "l2":
            raise UnsupportedError(f"a smoothed model is certified for l2, not {self.norm}: give norm: l2")
        sigma = smoothed.sigma if smoothed is not None else self.sigma
        if sigma is None:
            raise UnsupportedError("smoothing needs sigma, the noise to certify under, or a smoothed variant")
        if smoothed is not None and self.sigma not in (None, sigma):
            raise UnsupportedError(f"the variant is smoothed with sigma {sigma:g}, the check says {self.sigma:g}")
        body = target.module if smoothed is None else smoothed.body
        return Smoothing(body, sigma, self.n0, self.n, self.alpha, self.steps, self.batch_size)


def _summary(metrics: Mapping[str, Metric], title: str, norm: str, eps: float) -> str:
    certified, robust = metrics["certified_accuracy"], metrics["empirical_robust_accuracy"]
    assert certified.value is not None and certified.ci_low is not None and certified.ci_high is not None  # noqa: PT018
    assert robust.value is not None
    return (
        f"By {title}, {percent(certified.value)} of {certified.n} samples (95 % interval {percent(certified.ci_low)} "
        f"to {percent(certified.ci_high)}) are proven right for every input within {norm} ≤ {eps:.4g}; an attack "
        f"leaves {percent(robust.value)} standing. The true robust accuracy lies between the two."
    )


def _findings(measured: Measured, title: str) -> Iterator[Finding]:
    certified, robust = float(measured.at_eps.mean()), float(measured.robust.mean())
    ball = ball_text(measured.norm, measured.eps)
    if measured.contradicted.any():
        yield Finding(
            severity="critical",
            title=f"{int(measured.contradicted.sum())} certificates are contradicted by an attack",
            detail=f"By {title} these samples are proven within {ball}, and yet an input there changes the answer.",
            remedy="Do not rely on these certificates: the model or its bounds do not compute what they should.",
            standards=standards.EVASION,
        )
    elif certified < _VACUOUS <= robust:
        yield Finding(
            severity="low",
            title=f"The certificate says next to nothing within {ball}",
            detail=f"{percent(certified)} is proven where an attack leaves {percent(robust)}: the bounds are too loose "
            "for this model, or the model for this radius.",
            remedy="Certify a smaller radius, use crown instead of ibp, or train for certificates (noise of the same "
            "size for smoothing).",
            standards=standards.EVASION,
        )
