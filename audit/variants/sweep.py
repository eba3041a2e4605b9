"""The best of several settings of a defense, chosen on held-out training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from ...attacks.attack import Attack
from ...attacks.engine import evaluate
from ...attacks.threat import Norm, Threat
from ...defenses.selection import Rule, Sampler, Score, Space, Span, Trial, Value, check_space, choose, folds, search
from ...defenses.validation import hold_out
from .. import registry
from ..checks.base import Context, encoded
from ..checks.evasion import DEFAULT_EPS, Radius
from ..checks.evasion_options import build_attack
from ..checks.metrics import percent
from ..errors import AuditError, UnsupportedError
from ..loading.tokens import as_texts
from ..samples import Samples
from ..target import Target
from .base import Built, Variant
from .sweep_figures import failures, front_chart, metrics, trials_table, value_text
from .sweep_trials import HeldOut, TrialLog
from .text_augmentation import OFFERED, attack_training


class Range(BaseModel):
    """Numbers from low to high; whole ones where both are whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: int | float
    high: int | float
    log: bool = Field(default=False, description="Draw the logarithm evenly.")

    @property
    def span(self) -> Span:
        return Span(self.low, self.high, self.log)


class SweepVariant(Variant):
    """Tries settings of one defense and keeps the best, without a look at the audited data."""

    name: ClassVar[str] = "sweep"
    title: ClassVar[str] = "Best of several settings"
    exported: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (
        "Akiba et al., Optuna, arXiv 1907.10902",
        "Watanabe, Tree-Structured Parzen Estimator, arXiv 2304.11127",
        "Deb et al., A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, 2002",
    )

    train: str = Field(description="Training data: what is held out for the choice comes from here, never the audit's.")
    defense: dict[str, dict[str, Any] | None] = Field(
        min_length=1, max_length=1, description="The defense and its fixed options: `adversarial_training: {eps: 0.1}`."
    )
    over: dict[str, tuple[Value, ...] | Range] = Field(
        min_length=1, description="Options to vary: a list of values, or `{low: 1e-4, high: 1e-2, log: true}`."
    )
    sampler: Sampler = Field(default="tpe", description="grid (every combination), random, tpe or nsga2.")
    trials: int = Field(default=12, ge=1, description="Settings to try; a grid tries all of its own.")
    validation: float = Field(default=0.2, gt=0, le=0.5, description="Share of the training data held out.")
    folds: int | None = Field(default=None, ge=2, description="k-fold cross-validation in place of one held-out part.")
    norm: Norm = Field(default="linf", description="Norm in which robust accuracy is measured.")
    eps: Radius = Field(
        default_factory=lambda data: DEFAULT_EPS[data.get("norm", "linf")], description="Its radius, in input units."
    )
    attack: str = Field(
        default="pgd",
        description="Attack on the held-out data; for texts one of text_evasion's, such as typos. The audit's own "
        "checks judge later.",
    )
    steps: int | None = Field(default=20, ge=1, description="Its steps; of an attack on texts, the queries per text.")
    choose: Rule = Field(
        default="balanced", description="balanced (mean of clean and robust), robust_accuracy or clean_accuracy."
    )
    clean_at_least: float = Field(default=0.0, ge=0, le=1, description="Lowest clean accuracy that may be chosen.")

    @model_validator(mode="after")
    def _fits(self) -> SweepVariant:
        if self.attack not in OFFERED:
            self._attack()
        check_space(self._space(), self.sampler)
        for parameters in self._corners():
            self.inner(parameters)
        return self

    def inner(self, parameters: Mapping[str, Value]) -> Variant:
        """The defense with these settings."""
        ((name, options),) = self.defense.items()
        kind: type[Variant] = registry.load("defenses", name)
        if kind is SweepVariant:
            raise ValueError("a sweep cannot sweep over sweeps")
        strange = [option for option in parameters if option not in kind.model_fields]
        if strange:
            raise ValueError(registry.unknown(f"option of {name}", strange[0], kind.model_fields))
        shared = {"train": self.train} if "train" in kind.model_fields else {}
        try:
            return kind.model_validate({**shared, **(options or {}), **parameters, "id": self.id or self.name})
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, (name, *first['loc'])))}: {first['msg']}") from error

    def files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.train, *self.inner({}).files())))

    def as_built(self, parameters: Mapping[str, Any]) -> Variant:
        return self.inner(parameters["chosen"]).as_built(parameters)

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        if (target.modality == "text") != (self.attack in OFFERED):
            what = f"one of text_evasion's, such as typos, not {self.attack}" if target.modality == "text" else "pgd"
            raise UnsupportedError(f"sweep: for {target.modality} inputs `attack` must be {what}")
        found = self._search(target, samples, context)
        best = choose(found, self.choose, self.clean_at_least)
        context.progress.start("final training of the chosen setting", 1)
        built = self.inner(best.parameters).build(target, samples, context)
        return replace(
            built,
            summary=f"{self._summary(found, best)} {built.summary}",
            metrics=(*metrics(found, best, self._ball), *built.metrics),
            figures=(front_chart(found, best, self._ball), trials_table(found, best), *built.figures),
            warnings=(*built.warnings, *failures(found)),
            parameters={**built.parameters, "chosen": dict(best.parameters)},
        )

    def wrap(self, module: nn.Module) -> nn.Module:
        raise TypeError(f"what wraps {type(module).__name__} depends on what was chosen: call as_built first")

    def _search(self, target: Target, samples: Samples, context: Context) -> tuple[Trial, ...]:
        data = context.samples(self.train)
        splits = self._splits(torch.from_numpy(data.labels), context.seed)
        log = TrialLog(context.scratch("trials.json"), [context.seed, self.model_dump(mode="json"), data.sha256])

        def score(number: int, parameters: Mapping[str, Value]) -> Score:
            kept = log.get(number, parameters)
            if kept is None:
                kept = self._score(number, parameters, target, samples, data, splits, context)
                log.put(number, parameters, kept)
            return kept

        return search(self._space(), score, sampler=self.sampler, trials=self.trials, seed=context.seed)

    def _space(self) -> Space:
        return {name: values.span if isinstance(values, Range) else values for name, values in self.over.items()}

    def _splits(self, y: Tensor, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
        return (hold_out(y, self.validation, seed),) if self.folds is None else folds(y, self.folds, seed)

    def _score(
        self,
        number: int,
        parameters: Mapping[str, Value],
        target: Target,
        samples: Samples,
        data: Samples,
        splits: Sequence[tuple[Tensor, Tensor]],
        context: Context,
    ) -> Score:
        total = Score()
        for fold, (rows, held) in enumerate(splits):
            part = HeldOut(context, self.train, data.select(rows.numpy()), f"trial{number}-{fold}")
            try:
                inner = self.inner(parameters)
                module = inner.build(target, samples, part).module.eval()
            except AuditError as error:  # a setting that diverges is a result, not the end of the sweep
                return Score(error=str(error))
            total += self._measure(inner.deployed(target.with_module(module, "")), data.select(held.numpy()), context)
        return total

    def _measure(self, target: Target, held: Samples, context: Context) -> Score:
        if target.modality == "text":
            return self._measure_texts(target, held, context)
        x, y = encoded(target, held)
        threat = Threat(self.norm, self.eps, bounds=target.bounds)
        outcome = evaluate(
            self._attack(), target.module, x, y, threat, seed=context.seed, device=target.device,
            batch_size=context.batch_size,
        )  # fmt: skip
        return Score(len(y), int(outcome.correct.sum()), int((~outcome.success).sum()))

    def _measure_texts(self, target: Target, held: Samples, context: Context) -> Score:
        raws, y = as_texts(held.inputs[np.arange(len(held))]), torch.from_numpy(held.labels)
        outcome = attack_training(self.attack, target, raws, y, held.ids.tolist(), self._queries, context)
        return Score(len(y), int(outcome.tried.sum()), int((outcome.tried & ~outcome.success).sum()))

    @property
    def _queries(self) -> int:
        return 20 if self.steps is None else max(2, self.steps)

    def _attack(self) -> Attack:
        options = {} if self.steps is None else {"steps": self.steps}
        return build_attack(self.attack, options, self.norm, ("steps", "eps", "norm"), targeted=False)

    def _corners(self) -> Iterator[dict[str, Value]]:
        """Settings that together hold every value (the ends, for ranges) of every option."""
        values = {name: (v.low, v.high) if isinstance(v, Range) else v for name, v in self.over.items()}
        for place in range(max(len(options) for options in values.values())):
            yield {name: options[min(place, len(options) - 1)] for name, options in values.items()}

    @property
    def _ball(self) -> str:
        if self.attack in OFFERED:
            return f"{self._queries} queries per text"
        return f"{self.norm}, eps {self.eps:.3g}"

    def _summary(self, found: Sequence[Trial], best: Trial) -> str:
        setting = ", ".join(f"{name} {value_text(value)}" for name, value in best.parameters.items())
        rule, score = self.choose.replace("_", " "), best.score
        where = "held out" if self.folds is None else f"in {self.folds}-fold cross-validation"
        return (
            f"Of {len(found)} settings, {setting} was chosen ({rule}). On {score.n} training samples {where} it gets "
            f"{percent(score.clean_accuracy)} right, and {percent(score.robust_accuracy)} under {self.attack} "
            f"({self._ball}); as the best of several these figures are optimistic, the checks' figures are not."
        )
