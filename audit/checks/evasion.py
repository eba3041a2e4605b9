"""How small a change of the input makes the model err."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator
from torch import Tensor

from ...attacks.attack import Attack
from ...attacks.evasion.fgsm import FGSM
from ...attacks.evasion.hopskipjump import HopSkipJump
from ...attacks.evasion.transfer import Transfer
from ...attacks.masking import Diagnosis
from ...attacks.streams import Streams
from ...attacks.threat import Norm, parse_eps
from ...reports.record import Evidence, Figure, Metric, Result
from ..samples import Samples
from ..target import Access, Target
from . import standards
from .base import Check, Claim, Context, encoded
from .evasion_case import Case, case_evidence
from .evasion_effort import Effort, effort_chart, verify_effort
from .evasion_figures import charts, gallery, gallery_tensors, showcase
from .evasion_findings import Sanity, findings
from .evasion_masking import diagnosed, full_protocol
from .evasion_measures import Measured, ball_text
from .evasion_options import attack_class, build_attack
from .evasion_search import Search, Subject, module_logits
from .evasion_surrogate import Built, SurrogateSpec, build_surrogate, start_inputs
from .evasion_verify import recounted, verify_case, verify_gallery, verify_inputs, verify_metrics
from .metrics import by_name, percent, plain
from .outputs import require_finite, spaced

Radius = Annotated[
    float,
    BeforeValidator(parse_eps),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}], "examples": ["8/255", 0.5]}),
]
DEFAULT_EPS: dict[Norm, float] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0}
"""The radii in which most published results for small images are given."""

_ATTACK_OPTIONS = ("steps", "restarts", "step_size", "loss", "random_start")


class Evasion(Check):
    """Attacks each sample the model gets right and counts what still stands.

    Further options are handed to the attack: ``{attack: square, queries: 1000}``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: ClassVar[str] = "evasion"
    title: ClassVar[str] = "Adversarial robustness"
    question: ClassVar[str] = "How small a change of the input makes the model err?"
    requires: ClassVar[frozenset[Access]] = frozenset({"labels"})
    references: ClassVar[tuple[str, ...]] = (
        "Goodfellow et al., Explaining and Harnessing Adversarial Examples, arXiv 1412.6572",
        "Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083",
        "Croce and Hein, Reliable Evaluation of Adversarial Robustness, arXiv 2003.01690",
        "Carlini et al., On Evaluating Adversarial Robustness, arXiv 1902.06705",
        "Athalye et al., Obfuscated Gradients Give a False Sense of Security, arXiv 1802.00420",
    )
    standards: ClassVar[tuple[str, ...]] = standards.EVASION
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of the attacked data classified as labelled before the attack.",
        "robust_accuracy": "Share of samples right on the clean input with no adversarial input found within eps. "
        "With targets only inputs taken for the target class count, so it is higher than without.",
        "robust_accuracy_at_EPS": "The same at each further radius of `curve`.",
        "attack_success_rate": "Share of the correctly classified samples that were broken within eps.",
        "mean_distortion": "Mean size of the perturbations that succeeded within eps. Attacks at a fixed radius use "
        "all of it; only those that look for the smallest perturbation make this a property of the model.",
        "p10_distortion": "Size that a tenth of the successful perturbations stay within.",
        "median_distortion": "Median size of the successful perturbations.",
        "p90_distortion": "Size that nine tenths of the successful perturbations stay within.",
        "queries_per_sample": "Forward passes of the attack per correctly classified sample.",
        "gradients_per_sample": "Backward passes of the attack per correctly classified sample.",
        "surrogate_queries": "Queries of the model that trained the surrogate of a transfer attack.",
        "surrogate_agreement": "Share of the attacked inputs on which surrogate and model agree.",
    }
    cost: ClassVar[str] = "up to steps x restarts forward and backward passes per sample and radius"
    version: ClassVar[int] = 8

    norm: Norm = Field(default="linf", description="How perturbations are measured: linf, l2, l1 or l0.")
    eps: Radius = Field(
        default_factory=lambda data: DEFAULT_EPS[data.get("norm", "linf")],
        description="Radius in input units, also as a fraction: 8/255. By norm: linf 8/255, l2 0.5, l1 12, l0 24.",
    )
    attack: str = Field(default="auto", description="Name of the attack; `auditorch list attacks` shows them.")
    steps: int | None = Field(default=None, ge=1, description="Gradient steps; the attack's own default if left out.")
    restarts: int | None = Field(default=None, ge=1, description="Independent runs on the samples still standing.")
    step_size: Radius | None = Field(default=None, description="Length of a step, in units of the norm.")
    loss: str | None = Field(default=None, description="What the attack increases: ce, margin or dlr.")
    random_start: bool | None = Field(default=None, description="Begin at a random point of the ball.")
    targeted: Literal[False, "random", "least_likely", "next"] = Field(
        default=False, description="Class to reach: random, the least likely, or the next; false: any wrong one."
    )
    curve: tuple[Radius, ...] = Field(default=(), description="Further radii at which robust accuracy is reported.")
    surrogate: SurrogateSpec | None = Field(
        default=None,
        description="For `transfer`: the model whose gradients are used, by factory and weights, or extract: QUERIES.",
    )
    starts: str | None = Field(
        default=None,
        description="For `hopskipjump`: data whose inputs may serve as starting points, needed to reach a target.",
    )
    limit: int | None = Field(default=None, ge=1, description="Attack at most so many samples, evenly spaced.")
    diagnostics: bool = Field(
        default=True,
        description="Look on 64 samples for gradient masking, and where it shows run the full AutoAttack for `auto`.",
    )
    batch_size: int | None = Field(default=None, ge=1, description="Largest batch; chosen by input size if left out.")

    @field_validator("eps", "curve")
    @classmethod
    def _above_zero(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        for eps in value if isinstance(value, tuple) else (value,):
            if eps <= 0:
                raise ValueError("a radius must be above 0; accuracy at radius 0 is always reported")
        return value

    @model_validator(mode="after")
    def _attack_fits(self) -> Evasion:
        attack = self.build()
        if isinstance(attack, Transfer) != (self.surrogate is not None):
            raise ValueError(
                "attack 'transfer' needs a surrogate: {factory: …, weights: …} or {extract: QUERIES}"
                if self.surrogate is None
                else f"attack {self.attack!r} uses no surrogate; attack 'transfer' does"
            )
        if self.starts is not None and not isinstance(attack, HopSkipJump):
            raise ValueError(f"attack {self.attack!r} takes no starts; attack 'hopskipjump' does")
        return self

    def files(self) -> tuple[str, ...]:
        own = () if self.starts is None else (self.starts,)
        return (*own, *(() if self.surrogate is None else self.surrogate.files()))

    def build(self) -> Attack:
        """The configured attack.

        Raises:
            ValueError: for an unknown attack or option, or a norm or goal it cannot have.
        """
        given = {name: getattr(self, name) for name in _ATTACK_OPTIONS if getattr(self, name) is not None}
        options = {**given, **(self.model_extra or {})}
        known = tuple(type(self).model_fields)
        return build_attack(self.attack, options, self.norm, known, targeted=self.targeted is not False)

    @property
    def access(self) -> Access:
        """What the attack needs of the model."""
        return getattr(attack_class(self.attack), "access", "gradients")

    def required(self) -> frozenset[Access]:
        return frozenset({self.access})

    @property
    def radii(self) -> tuple[float, ...]:
        """All radii examined, ascending."""
        return tuple(sorted({self.eps, *self.curve}))

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        case = self._case(target, spaced(samples, self.limit), context)
        search = Search.begin(case.subject, case.clean_logits, case.correct)
        diagnosis = self._diagnosis(case, context)
        surrogate = None if self.surrogate is None else build_surrogate(self.surrogate, case.subject, context)
        attacks = {
            name: self._equipped(attack, surrogate, case, context) for name, attack in self._attacks(diagnosis).items()
        }
        sanity = self._search(search, attacks, diagnosis, context)
        measured = self._measured(case, search.radius, search.distance)
        tags = self.standards if self.access == "gradients" else standards.BLACK_BOX_EVASION
        k, span, named = len(target.classes), target.bounds[1] - target.bounds[0], ", ".join(attacks)
        probing = (0, 0) if diagnosis is None else (diagnosis.forwards, diagnosis.backwards)
        evidence, figures = self._shown(case, search, measured, context, named)
        bought = () if surrogate is None else tuple(surrogate.metrics())
        metrics = (*measured.metrics(), *_work(search, int(case.correct.sum())), *bought)
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=f"{self.title}: {ball_text(self.norm, self.eps)}, {named}",
            summary=self._summary(by_name(metrics), named),
            status="ok",
            parameters={**self.model_dump(exclude={"id", "variants"}, exclude_none=True), "options": _options(attacks)},
            metrics=metrics,
            findings=tuple(findings(measured, sanity, k, span, named, tags, targeted=self.targeted is not False)),
            figures=figures,
            evidence=evidence,
            warnings=(*_warnings(measured), *self._replaced(diagnosis, named)),
            not_covered=self._not_covered(),
            references=self.references,
            standards=tags,
            forwards=len(case.y)
            + search.forwards
            + search.verification_forwards
            + probing[0]
            + (0 if surrogate is None else surrogate.queries),
            backwards=search.backwards + probing[1],
        )

    def _case(self, target: Target, samples: Samples, context: Context) -> Case:
        x, y = encoded(target, samples)
        logits = module_logits(target, x, self.batch_size or context.batch_size)
        require_finite(logits, samples)
        ids = torch.from_numpy(samples.ids)
        goal = self._goal(y, logits, ids, context.seed)
        return Case(samples, y, logits, Subject(target, x, goal, ids, self.norm, self.targeted is not False))

    def _goal(self, y: Tensor, logits: Tensor, ids: Tensor, seed: int) -> Tensor:
        """Labels ``(n,)`` to leave, or classes to reach, none of them the label."""
        k = logits.shape[1]
        match self.targeted:
            case False:
                return y
            case "next":
                return (y + 1) % k
            case "least_likely":
                return logits.scatter(1, y[:, None], float("inf")).argmin(1)
            case "random":
                return (y + 1 + Streams.from_seed(seed, ids).fork(1).integers(k - 1, (1,)).squeeze(1)) % k

    def _diagnosis(self, case: Case, context: Context) -> Diagnosis | None:
        if not self.diagnostics or self.access != "gradients":
            return None
        return diagnosed(case, self.eps, context.seed, self.batch_size or context.batch_size)

    def _attacks(self, diagnosis: Diagnosis | None) -> dict[str, Attack]:
        """What runs, by name: the attack asked for, and in place of `auto` the full protocol on masked models."""
        if self.attack == "auto" and diagnosis is not None and diagnosis.masked:
            return full_protocol(diagnosis, targeted=self.targeted is not False)
        return {self.attack: self.build()}

    def _equipped(self, attack: Attack, surrogate: Built | None, case: Case, context: Context) -> Attack:
        """The attack with the surrogate and the starting points that the spec names."""
        if isinstance(attack, Transfer) and surrogate is not None:
            return replace(attack, surrogate=surrogate.module)
        if isinstance(attack, HopSkipJump) and self.starts is not None:
            return replace(attack, starts=start_inputs(self.starts, case.subject, context))
        return attack

    def _search(
        self, search: Search, attacks: Mapping[str, Attack], diagnosis: Diagnosis | None, context: Context
    ) -> Sanity:
        """The attacks, each on what withstood those before, and after them a look at what a single step finds."""
        batch = self.batch_size or context.batch_size
        for attack in attacks.values():
            search.sweep(attack, self.radii, self.eps, context, batch)
        single = any(isinstance(attack, FGSM) for attack in attacks.values())
        if self.access != "gradients" or single or (diagnosis is not None and diagnosis.has("no_gradient")):
            return Sanity(self.access == "gradients", diagnosis)
        stepped = int((search.radius > self.eps).sum())
        broken = search.attack(FGSM(), self.eps, context, batch)
        return Sanity(white_box=True, diagnosis=diagnosis, stepped=stepped, single_step=len(broken))

    def _measured(self, case: Case, radius: Tensor, distance: Tensor) -> Measured:
        y, correct = case.y.numpy(), case.correct.numpy()
        return Measured(y, correct, radius.numpy(), distance.numpy(), self.norm, self.eps, self.radii)

    def _shown(
        self, case: Case, search: Search, measured: Measured, context: Context, attack: str
    ) -> tuple[tuple[Evidence, ...], tuple[Figure, ...]]:
        """The adversarial inputs for ``verify``, and the figures, a gallery among them where the inputs are images."""
        target, classes = case.subject.target, case.samples.classes
        rows = (case.correct & (search.radius <= self.radii[-1])).nonzero().squeeze(1)
        effort = Effort.of(search, measured)
        tensors = case_evidence(case, search, rows)
        if effort is not None:
            tensors["spent"] = search.spent
        files = [context.evidence("adversarial", tensors)]
        figures = list(charts(measured, classes, search.logits.argmax(1), attack, fine=search.minimal))
        if effort is not None:
            figures.insert(1, effort_chart(effort, attack))
        shown = showcase(measured) if target.modality == "image" and case.subject.x.dim() == 4 else []
        if shown:
            tensors = gallery_tensors(case.subject.x, search.x_adv, shown, target.bounds)
            files.append(context.evidence("gallery", tensors, name="gallery"))
            path, names = files[-1].path, case.samples.names
            figures.append(gallery(measured, shown, names, classes, case.clean_logits, search.logits, path))
        return tuple(files), tuple(figures)

    def _replaced(self, diagnosis: Diagnosis | None, named: str) -> Iterator[str]:
        if diagnosis is not None and named != self.attack:
            signs = "; ".join(flag.title for flag in diagnosis.flags)
            yield f"Signs of gradient masking ({signs}): {named} ran in place of {self.attack}, with its own settings."

    def _summary(self, metrics: Mapping[str, Metric], named: str) -> str:
        clean, robust = metrics["clean_accuracy"], metrics["robust_accuracy"]
        assert clean.value is not None and robust.value is not None  # noqa: PT018
        assert robust.ci_low is not None and robust.ci_high is not None  # noqa: PT018
        goal = "" if self.targeted is False else f" towards a chosen class ({self.targeted})"
        return (
            f"Of {robust.n} samples the model gets {percent(clean.value)} right on clean inputs, and "
            f"{percent(robust.value)} (95 % interval {percent(robust.ci_low)} to {percent(robust.ci_high)}) when "
            f"{named} may change them by {ball_text(self.norm, self.eps)}{goal}. "
            "This is an upper bound: a stronger attack can only lower it."
        )

    def _not_covered(self) -> tuple[str, ...]:
        return (
            f"Perturbations measured otherwise than by {self.norm}, and larger than {max(self.radii):.4g}.",
            "Attacks other than the one named, in particular attacks adapted to a defense.",
            "Changes outside of norm balls: rotation, weather, patches, other data.",
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        case = self._case(target, spaced(samples, self.limit), context)
        batch = self.batch_size or context.batch_size
        recorded = context.read_evidence(result.evidence[0])
        claims = list(verify_case(case, recorded))
        yield from claims
        if not claims[0].ok:
            return
        yield from verify_inputs(case, recorded, batch)
        radius, distance = recounted(recorded)
        measured = self._measured(case, radius, distance)
        yield from verify_metrics(measured, result)
        yield from verify_effort(measured, recorded, result)
        for evidence in result.evidence[1:]:
            yield verify_gallery(case, context.read_evidence(evidence))


def _work(search: Search, attacked: int) -> Iterator[Metric]:
    """What the attack cost, in passes per sample attacked."""
    for name, passes, label in (
        ("queries_per_sample", search.forwards, "Model evaluations per sample attacked"),
        ("gradients_per_sample", search.backwards, "Gradients per sample attacked"),
    ):
        value = passes / attacked if attacked else None
        yield plain(name, value, attacked, label=label, unit="passes", higher_is_better=None)


def _options(attacks: Mapping[str, Attack]) -> dict[str, Any]:
    """Options of the attack, or by name where several ran."""
    options = {
        name: {
            field.name: getattr(attack, field.name)
            for field in (dataclass_fields(attack) if is_dataclass(attack) else ())
            if field.repr  # tensors and models are named by the spec
        }
        for name, attack in attacks.items()
    }
    return next(iter(options.values())) if len(options) == 1 else options


def _warnings(measured: Measured) -> Iterator[str]:
    if not measured.correct.any():
        yield "The model gets no sample right: success rate and distortion are undefined."
    elif not measured.fallen.any():
        yield "No attack succeeded: distortion is undefined."
