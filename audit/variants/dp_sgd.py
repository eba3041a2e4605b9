"""The variant that was trained with differential privacy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from pydantic import Field, PositiveFloat, model_validator
from torch import nn

from ...defenses.scope import training_scope
from ...privacy.checkpoint import delete_state
from ...privacy.config import DPConfig
from ...privacy.dp_sgd import DPResult, dp_fine_tune
from ...privacy.layers import private_structure
from ...privacy.tuning import TuningCost, tuning_cost
from ...reports.record import Metric
from ..cache import stable_hash
from ..checks.base import Context
from ..errors import UnsupportedError
from ..recipe import BASE, RANDOM, Recipe
from ..samples import Samples
from ..target import Target
from .base import Built, Variant
from .private_options import PRESENT, PrivateTraining
from .training import cost_metrics, curve_chart, training_data


class DPSGDVariant(PrivateTraining, Variant):
    """Trains with DP-SGD: how well the model does when no single training record may matter."""

    name: ClassVar[str] = "dp_sgd"
    title: ClassVar[str] = "Differentially private training"
    version: ClassVar[int] = 3
    references: ClassVar[tuple[str, ...]] = (
        "Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133",
        "Gopi et al., Numerical Composition of Differential Privacy, arXiv 2106.02848",
        "Bu et al., Differentially Private Optimization on Large Model at Small Cost, arXiv 2210.00038",
        "De et al., Unlocking High-Accuracy Differentially Private Image Classification, arXiv 2204.13650",
    )

    train: str = Field(description="Training data, in any form that `data.source` takes; path relative to the spec.")
    epsilon: PositiveFloat | tuple[PositiveFloat, ...] | None = Field(
        default=None,
        description="Budget to spend; this or noise_multiplier. A list makes one variant of each, `dp_sgd-eps1` and so "
        "on: the privacy-utility curve.",
    )
    trials: int = Field(
        default=1,
        ge=1,
        description="Trainings made on these records to find the settings, this one included; their common budget is "
        "reported.",
    )
    secret_seed: bool = Field(
        default=False,
        description="Draw sampling and noise from the operating system: needed for publishing, "
        "but another run gives other weights.",
    )

    @model_validator(mode="after")
    def _sound(self) -> DPSGDVariant:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give either epsilon or noise_multiplier, one of the two")
        if isinstance(self.epsilon, tuple) and not self.epsilon:
            raise ValueError("epsilon is an empty list")
        return self

    def expanded(self) -> tuple[DPSGDVariant, ...]:
        if not isinstance(self.epsilon, tuple):
            return (self,)
        base = self.id or self.name
        return tuple(self.model_copy(update={"id": f"{base}-eps{one:g}", "epsilon": one}) for one in self.epsilon)

    def files(self) -> tuple[str, ...]:
        return (self.train, *self.start_files)

    def recipe(self) -> Recipe:
        return Recipe(BASE if self.start == PRESENT else self.start, self.new_head, self.trained_part(0))

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        x, y = training_data(target, context, self.train)
        module = copy.deepcopy(target.module)
        self.begin(module, context)
        augment = self.augment.build(target)
        context.progress.start("private training", self.epochs * len(y))
        kept = context.scratch(f"{self._state_name(target, context)}.safetensors")
        with training_scope(module, self.trained_part(context.seed)):
            result = dp_fine_tune(
                module,
                x,
                y,
                config=self._config(context, len(y)),
                on_samples=context.progress.advance,
                augment=augment,
                checkpoint=kept,
            )
            if self.scope == "lora":  # the adapters are merged into ``module`` on leaving
                module.load_state_dict(result.module.state_dict())
        built = self._built(replace(result, module=module) if self.scope == "lora" else result)
        delete_state(kept)
        data = {"train_sha256": context.samples(self.train).sha256}
        return replace(built, parameters={**built.parameters, **data})

    def _state_name(self, target: Target, context: Context) -> str:
        """Of the unfinished training; another training, which has steps of its own, has another name."""
        facts = [self.model_dump(mode="json", exclude={"id", "trials"}), context.seed, target.sha256]
        facts.append(context.samples(self.train).sha256)
        return f"dp-{stable_hash(facts)[:12]}"

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.scope == "lora":
            return module  # the structure is as before once the adapters are merged
        with training_scope(module, self.trained_part(0)):
            private, _ = private_structure(module)
        return private.requires_grad_(True)

    def _config(self, context: Context, n: int) -> DPConfig:
        if isinstance(self.epsilon, tuple):
            raise UnsupportedError(f"{self.id or self.name}: one training has one epsilon; see expanded()")
        return self.steps(
            epsilon=self.epsilon,
            batch_size=min(self.batch_size, n),
            seed=None if self.secret_seed else context.seed,
            physical_batch=context.batch_size,
        )

    def _caveats(self) -> Iterator[str]:
        """What the weights that training began from mean for the guarantee."""
        if self.start == PRESENT:
            yield (
                "Training began from the target's own weights: if these saw the training records before, epsilon says "
                "nothing of what they already hold. Name public weights in `start`, or leave it out."
            )
        elif self.start != RANDOM:
            yield f"epsilon covers this training only: it holds if {self.start} was made without these records."

    def _built(self, result: DPResult) -> Built:
        budget = result.budget
        tuning = tuning_cost(budget, self.trials)
        chart = curve_chart(
            [epoch.loss for epoch in result.history],
            [epoch.accuracy for epoch in result.history],
            "on the records drawn, before each step; computed without noise, so not covered by epsilon",
        )
        return Built(
            module=result.module.eval(),
            summary=f"Trained with DP-SGD: epsilon {budget.epsilon:.3g} at delta {budget.delta:.2g} "
            f"({budget.accountant.upper()} accountant, records added or removed), {budget.steps} steps with noise "
            f"multiplier {budget.noise_multiplier:.3g}.{_tuning_sentence(tuning)}",
            metrics=(
                *_privacy_metrics(result, tuning),
                *cost_metrics(result.module, result.seconds, self.epochs),
            ),
            figures=(chart,),
            warnings=(*self._caveats(), *result.warnings),
            parameters={
                "accountant": budget.accountant,
                "epsilon_by_accountant": _by_accountant(result),
                "privacy_unit": "one training record, added or removed",
                "lost_steps": result.lost_steps,
                "clip_norm": result.clip_norm,
                "epsilon_random_trials": tuning.random_trials,
            },
        )


def _tuning_sentence(cost: TuningCost) -> str:
    if cost.trials == 1:
        return " Settings chosen by looking at results on these records are not covered; see the option trials."
    text = f" With the {cost.trials} trainings that found the settings: epsilon {cost.epsilon:.3g} (all composed)"
    if cost.random_trials is not None:
        text += (
            f"; {cost.random_trials:.3g} if their number was drawn from a Poisson distribution with that mean and only "
            "the best is shown (arXiv 2110.03620)"
        )
    return text + "."


def _privacy_metrics(result: DPResult, tuning: TuningCost) -> tuple[Metric, ...]:
    budget = result.budget
    with_tuning = Metric(
        name="epsilon_with_tuning", value=tuning.epsilon, higher_is_better=False, label="epsilon with all trials"
    )
    return (
        Metric(name="epsilon", value=budget.epsilon, higher_is_better=False, label="Privacy budget epsilon"),
        Metric(name="delta", value=budget.delta, higher_is_better=False, label="delta"),
        *((with_tuning,) if tuning.trials > 1 else ()),
        Metric(name="noise_multiplier", value=budget.noise_multiplier, label="Noise multiplier"),
        Metric(name="sample_rate", value=budget.sample_rate, unit="rate", label="Sampling rate"),
        Metric(name="steps", value=budget.steps, label="Noisy steps"),
        Metric(name="clipped", value=result.clipped, unit="rate", label="Share of gradients clipped"),
    )


def _by_accountant(result: DPResult) -> dict[str, float | None]:
    return {"prv": result.budget.prv, "pld": result.budget.pld, "rdp": result.budget.rdp}
