"""Whether the epsilon of a private training is true."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...attacks.statistics import auc, auc_interval
from ...defenses.scope import training_scope
from ...privacy.accounting import Budget
from ...privacy.auditing.audit import audit_in_one_run, loss_scores
from ...privacy.auditing.bounds import LowerBound, one_run_bound
from ...privacy.auditing.canaries import CanaryNetwork, PlantedAugment, PlantedInputs, coins
from ...privacy.dp_sgd import DPConfig, dp_fine_tune
from ...reports.record import Chart, Figure, Finding, Line, Metric, Result, Table
from ..errors import DataError
from ..recipe import RANDOM
from ..samples import Samples
from ..target import Access, Target
from ..variants.private_options import PRESENT, PrivateTraining
from . import standards
from .base import Check, Claim, Context, encoded
from .metrics import by_name, estimate, plain, recomputed
from .outputs import spaced

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Advance = Callable[[float], None]


class DPAudit(PrivateTraining, Check):
    """Plants canaries, each on a coin of its own, and bounds epsilon from below by how well they are told apart.

    With `train` the model's architecture is trained by DP-SGD with canaries beside the records, from the start, with
    the options, at the sampling rate, noise and number of steps of the training that is to be believed: what is audited
    is the trainer. Copy the options of the `dp_sgd` variant: they are the same. On a variant, the model that it came
    from is trained. With `included` and `excluded` the owner planted canaries himself, and the audited model is asked.
    """

    name: ClassVar[str] = "dp"
    title: ClassVar[str] = "Audit of the privacy budget"
    question: ClassVar[str] = "Is the epsilon on the label true?"
    requires: ClassVar[frozenset[Access]] = frozenset({"gradients", "scores"})
    references: ClassVar[tuple[str, ...]] = (
        "Steinke, Nasr and Jagielski, Privacy Auditing with One (1) Training Run, arXiv 2305.08846",
        "Nasr et al., Tight Auditing of Differentially Private Machine Learning, arXiv 2302.07956",
        "Jagielski, Ullman and Oprea, Auditing Differentially Private Machine Learning, arXiv 2006.07709",
    )
    standards: ClassVar[tuple[str, ...]] = standards.MEMBERSHIP
    metrics: ClassVar[Mapping[str, str]] = {
        "epsilon_lower_bound": "Epsilon that the training cannot be below, with 95 % confidence. Far below the claim "
        "is normal: one run shows only part of what leaks. Above it, the claim is false.",
        "epsilon": "Epsilon as claimed: by the accountant, or as the spec says.",
        "delta": "Probability with which the guarantee may fail, for both.",
        "highest_provable": "The largest lower bound that so many canaries could have shown, had all been told apart.",
        "canary_auc": "Probability that an included canary scores above one that was left out; 0.5 when nothing leaks.",
        "noise_multiplier": "Standard deviation of the noise divided by the clipping norm, as claimed.",
        "sample_rate": "Probability with which a record enters a batch, as claimed.",
        "steps": "Noisy steps, as claimed.",
    }
    version: ClassVar[int] = 3
    cost: ClassVar[str] = (
        "one private training of `epochs` passes over the records and canaries; or a forward pass each"
    )

    train: str | None = Field(default=None, description="Training records, path relative to the spec.")
    included: str | None = Field(default=None, description="Canaries that the audited model was trained on.")
    excluded: str | None = Field(default=None, description="Canaries that coins kept out of its training.")
    epsilon: float | None = Field(
        default=None, gt=0, description="Claimed budget; with train this or noise_multiplier."
    )
    canaries: int = Field(default=1000, ge=20, description="How many are planted; more can show a higher epsilon.")
    limit: int | None = Field(
        default=2000, ge=2, description="At most so many records are trained on; the sampling rate stays what it was."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        own = self.included is not None and self.excluded is not None
        if (self.train is not None) == own or (self.included is None) != (self.excluded is None):
            raise ValueError("give either train, or both included and excluded")
        if own and (self.epsilon is None or self.delta is None):
            raise ValueError("with included and excluded, say what is claimed: epsilon and delta")
        if own and (unused := self.model_fields_set & _TRAINING):
            raise ValueError(f"{', '.join(sorted(unused))}: only used with train")
        if not own and (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("with train, give either epsilon or noise_multiplier, one of the two")
        return self

    def files(self) -> tuple[str, ...]:
        named = (self.train, self.included, self.excluded, *self.start_files)
        return tuple(name for name in named if name is not None)

    def required(self) -> frozenset[Access]:
        return self.requires if self.train is not None else frozenset({"scores"})

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        del samples  # canaries need no other data
        audited = self._trained(target, context) if self.train is not None else self._asked(target, context)
        metrics = tuple(_metrics(audited))
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(audited),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(_findings(audited)),
            figures=tuple(_figures(audited)),
            evidence=(context.evidence("scores", _evidence(audited)),),
            warnings=tuple(self._warnings(audited)),
            not_covered=tuple(self._not_covered()),
            references=self.references,
            standards=self.standards,
            forwards=0 if self.train is not None else len(audited.scores),
        )

    def _trained(self, target: Target, context: Context) -> Audited:
        assert self.train is not None
        origin = target.base or target
        module = copy.deepcopy(origin.module)
        self.begin(module, context)
        whole = context.samples(self.train)
        x, y = encoded(origin, spaced(whole, self.limit))
        rate = min(1.0, self.batch_size / len(whole))
        context.progress.start("private training with canaries", self.epochs * (len(x) + self.canaries / 2))
        budgets: list[Budget] = []
        augment = self.augment.build(origin)

        def train(network: nn.Module, inputs: PlantedInputs, labels: Tensor) -> tuple[nn.Module, Budget]:
            assert isinstance(network, CanaryNetwork)
            with training_scope(network.module, self.trained_part(context.seed)):  # the probe is trained in any case
                result = dp_fine_tune(
                    network,
                    inputs,
                    labels,
                    config=self._config(context, rate, len(whole), len(labels)),
                    on_samples=context.progress.advance,
                    augment=None if augment is None else PlantedAugment(augment, tuple(x.shape[1:])),
                )
            budgets.append(result.budget)
            return result.module, result.budget

        found = audit_in_one_run(
            train,
            module,
            x,
            y,
            classes=len(origin.classes),
            canaries=self.canaries,
            seed=_coin_seed(context.seed),
        )
        return Audited(found.epsilon, found.bound, found.scores, found.included, budgets[0], rate)

    def _config(self, context: Context, rate: float, whole: int, n: int) -> DPConfig:
        """The training to be believed, on fewer records: as likely to be drawn, as often, under as much noise."""
        return self.steps(
            epsilon=self.epsilon,
            batch_size=max(1, round(rate * n)),
            seed=context.seed,
            delta=float(whole) ** -1.1 if self.delta is None else self.delta,
            physical_batch=context.batch_size,
        )

    def _asked(self, target: Target, context: Context) -> Audited:
        assert self.epsilon is not None
        assert self.delta is not None
        scores, included = self._answers(target, context)
        return Audited(self.epsilon, one_run_bound(scores, included, self.delta), scores, included, None)

    def _answers(self, target: Target, context: Context) -> tuple[Floats, Mask]:
        """Scores and membership ``(m,)`` of the owner's canaries, in an order that does not tell."""
        assert self.included is not None
        assert self.excluded is not None
        sides = [context.samples(source) for source in (self.included, self.excluded)]
        if min(map(len, sides)) == 0:
            raise DataError("there must be canaries on both sides")
        scores = np.concatenate([loss_scores(target.module, *encoded(target, side)) for side in sides])
        included = np.arange(len(scores)) < len(sides[0])
        order = np.random.default_rng(context.seed).permutation(len(scores))  # ties must not depend on membership
        return scores[order], included[order]

    def _warnings(self, audited: Audited) -> Iterator[str]:
        bound = audited.bound
        if bound.highest < audited.epsilon:
            yield (
                f"{len(audited.scores)} canaries can show at most epsilon {bound.highest:.2f}, less than the "
                f"{audited.epsilon:.3g} claimed: this audit could not have refuted it. Plant more canaries, or test "
                "the same trainer at a smaller epsilon."
            )
        if audited.budget is not None and audited.wanted_rate is not None:
            rate = audited.budget.sample_rate
            if abs(rate / audited.wanted_rate - 1) > 0.05:
                yield (
                    f"With so few records the sampling rate is {rate:.3g}, where that of the whole training set is "
                    f"{audited.wanted_rate:.3g}: raise limit or canaries."
                )
        if self.train is None and abs(audited.included.mean() - 0.5) > 2 / len(audited.included) ** 0.5:
            yield (
                f"{int(audited.included.sum())} of {len(audited.included)} canaries are included: fair coins would "
                "hardly do that, and the bound holds only if each was included on a fair coin of its own."
            )

    def _not_covered(self) -> Iterator[str]:
        yield "A lower bound is no proof: leaks that these canaries do not show, and epsilons between bound and claim."
        if self.train is not None:
            yield (
                "The weights under audit themselves: what was tested is the trainer, on the same architecture with a "
                f"probe beside it, at the same sampling rate, noise and number of steps. It began from {self._start()}."
            )
            if self.clipping == "per_layer":
                yield (
                    "A layer other than the probe that takes more than its share of the norm: a canary's gradient is "
                    "almost wholly in the probe."
                )
        else:
            yield "How the canaries were chosen and planted, which is taken on trust."

    def _start(self) -> str:
        own = {RANDOM: "random weights", PRESENT: "the weights of the model as given"}
        return own.get(self.start, self.start) + (" with a new head" if self.new_head else "")

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        del samples
        recorded = context.read_evidence(result.evidence[0])
        scores, included = recorded["scores"].numpy(), recorded["included"].numpy()
        if self.train is not None:
            tossed = coins(self.canaries, _coin_seed(context.seed)).numpy()
            yield Claim("the canaries were included by the coins of the seed", np.array_equal(tossed, included))
        else:
            asked, truth = self._answers(target, context)
            same = np.array_equal(truth, included) and np.allclose(asked, scores, rtol=1e-3, atol=1e-3)
            yield Claim("the model answers as recorded, on these canaries", same)
        claimed = by_name(result.metrics)
        delta, epsilon = claimed["delta"].value, claimed["epsilon"].value
        if delta is None or epsilon is None:
            yield Claim("epsilon and delta are stated", False)
            return
        again = Audited(epsilon, one_run_bound(scores, included, delta), scores, included, None)
        yield from recomputed(_metrics(again), result, "scores", 1e-6)


@dataclass(frozen=True, slots=True)
class Audited:
    """Attributes: epsilon as claimed, what could be shown, the canaries' scores and membership; where a training was
    made, its account, and the sampling rate of the training to be believed.
    """

    epsilon: float
    bound: LowerBound
    scores: Floats
    included: Mask
    budget: Budget | None
    wanted_rate: float | None = None

    @property
    def broken(self) -> bool:
        return self.bound.epsilon > self.epsilon


_TRAINING = (set(PrivateTraining.model_fields) - {"delta"}) | {"canaries", "limit"}
"""Options that mean nothing to the owner's own canaries."""


def _coin_seed(seed: int) -> int:
    """Another stream than the trainer's, whose batches must not depend on the coins."""
    return (seed ^ 0x5EEDC01) % 2**62


def _metrics(audited: Audited) -> Iterator[Metric]:
    bound, m = audited.bound, len(audited.scores)
    yield Metric(
        name="epsilon_lower_bound",
        value=bound.epsilon,
        n=m,
        higher_is_better=False,
        label="Epsilon, empirical lower bound",
        method="one run, 95 % confidence",
    )
    yield plain("epsilon", audited.epsilon, None, label="Epsilon, claimed", unit="", higher_is_better=False)
    yield plain("delta", bound.delta, None, label="delta", unit="", higher_is_better=False)
    yield plain("highest_provable", bound.highest, m, label="Most that could be shown", unit="", higher_is_better=None)
    inside, outside = audited.scores[audited.included], audited.scores[~audited.included]
    yield estimate(
        "canary_auc",
        auc(inside, outside),
        auc_interval(inside, outside),
        m,
        label="AUC of the canaries (0.5: nothing leaks)",
        higher_is_better=False,
        method="delong",
        unit="auc",
    )
    if audited.budget is not None:
        budget = audited.budget
        yield plain(
            "noise_multiplier", budget.noise_multiplier, None, label="Noise multiplier", unit="", higher_is_better=None
        )
        yield plain("sample_rate", budget.sample_rate, None, label="Sampling rate", unit="rate", higher_is_better=None)
        yield plain("steps", budget.steps, None, label="Noisy steps", unit="", higher_is_better=None)


def _summary(audited: Audited) -> str:
    bound = audited.bound
    text = (
        f"Claimed: epsilon {audited.epsilon:.3g} at delta {bound.delta:.2g}. Shown with 95 % confidence: at least "
        f"{bound.epsilon:.3g} ({bound.correct} of {bound.guesses} guesses about {len(audited.scores)} canaries right)."
    )
    return text + (" The claim is false." if audited.broken else " The claim stands.")


def _findings(audited: Audited) -> Iterator[Finding]:
    bound = audited.bound
    if audited.broken:
        yield Finding(
            severity="critical",
            title="The training leaks more than its epsilon allows",
            detail=f"{bound.correct} of {bound.guesses} guesses about canaries are right, which a training with "
            f"epsilon {audited.epsilon:.3g} would hardly give; it is {bound.epsilon:.3g} or more (95 % confidence).",
            remedy="Look for missing noise, missing clipping, noise scaled by the wrong batch size, a known seed, or "
            "a sampler that draws records more often than the account says.",
            standards=standards.MEMBERSHIP,
        )
        return
    yield Finding(
        severity="info",
        title="The claimed epsilon is not refuted",
        detail=f"The canaries show at least {bound.epsilon:.3g}, and could have shown {bound.highest:.3g}; claimed is "
        f"{audited.epsilon:.3g}.",
        standards=standards.MEMBERSHIP,
    )


def _figures(audited: Audited) -> Iterator[Figure]:
    bound = audited.bound
    yield Table(
        id="budget",
        title="Claim and evidence",
        caption="The truth lies between what was shown and, if the account is right, what is claimed.",
        columns=("", "epsilon"),
        rows=(
            ("shown by the canaries (95 % confidence)", bound.epsilon),
            ("most that they could have shown", bound.highest),
            ("claimed", audited.epsilon),
        ),
    )
    low, high = (float(q) for q in np.quantile(audited.scores, [0.005, 0.995]))
    edges = np.linspace(low, max(high, low + 1e-9), 41)
    lines = []
    for name, chosen in (("included", audited.included), ("left out", ~audited.included)):
        counts, _ = np.histogram(audited.scores[chosen].clip(low, high), edges)
        share = counts / max(int(chosen.sum()), 1)
        lines.append(Line(name=name, x=tuple(((edges[1:] + edges[:-1]) / 2).tolist()), y=tuple(share.tolist())))
    yield Chart(
        id="canaries",
        title="Scores of the canaries",
        caption="Where the lines differ, the training shows which canaries it saw. The tails are drawn at the ends.",
        style="step",
        x_label="score, the higher the more like included",
        y_label="share of canaries",
        lines=tuple(lines),
    )


def _evidence(audited: Audited) -> dict[str, Tensor]:
    return {"scores": torch.from_numpy(audited.scores.copy()), "included": torch.from_numpy(audited.included.copy())}
