"""The variant that was trained with differential privacy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from ...defenses.scope import reset_head, training_scope
from ...privacy.dp_sgd import DPConfig, DPResult, dp_fine_tune
from ...privacy.layers import private_structure
from ...reports.record import Metric
from ..checks.base import Context
from ..errors import UnsupportedError
from ..loading.model import inner
from ..loading.weights import load_weights, read_weights
from ..samples import Samples
from ..target import Target
from .base import Built, Variant
from .training import TrainedPart, checked_scope, cost_metrics, curve_chart, training_data

FRESH, PRESENT = "random", "target"


class DPSGDVariant(Variant):
    """Trains with DP-SGD: how well the model does when no single training record may matter."""

    name: ClassVar[str] = "dp_sgd"
    title: ClassVar[str] = "Differentially private training"
    references: ClassVar[tuple[str, ...]] = (
        "Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133",
        "Gopi et al., Numerical Composition of Differential Privacy, arXiv 2106.02848",
    )

    train: str = Field(description="Training data, in any form that `data.source` takes; path relative to the spec.")
    start: str = Field(
        default=FRESH,
        description="Weights to start from: `random`; a file that saw none of these records (public pre-training); "
        "or `target`, which has a guarantee only if the target never saw them.",
    )
    new_head: bool = Field(default=False, description="Draw the last layer's weights afresh, as for new classes.")
    epsilon: float | None = Field(default=None, gt=0, description="Budget to spend; this or noise_multiplier.")
    noise_multiplier: float | None = Field(default=None, ge=0, description="Noise in units of max_grad_norm.")
    delta: float | None = Field(default=None, gt=0, lt=1, description="n ** -1.1 when left out.")
    epochs: int = Field(default=15, ge=1, description="Expected passes over the training data.")
    batch_size: int = Field(default=512, ge=1, description="Expected number of records per step.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="l2 norm to which each gradient is clipped.")
    lr: float = Field(default=2.0, gt=0, description="Learning rate, constant.")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="sgd or adam.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Of sgd.")
    scope: TrainedPart = Field(default="all", description="What is trained: all, head, or the number of last blocks.")
    secret_seed: bool = Field(
        default=False,
        description="Draw sampling and noise from the operating system: needed for publishing, "
        "but another run gives other weights.",
    )
    secure_noise: bool = Field(default=False, description="Noise that withstands floating-point attacks; slower.")

    @model_validator(mode="after")
    def _one_target(self) -> DPSGDVariant:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give either epsilon or noise_multiplier, one of the two")
        return self

    def files(self) -> tuple[str, ...]:
        return (self.train,) if self.start in (FRESH, PRESENT) else (self.train, self.start)

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        x, y = training_data(target, context, self.train)
        module = copy.deepcopy(target.module)
        caveat = self._begin(module, context)
        context.progress.start("private training", self.epochs * len(y))
        with training_scope(module, checked_scope(self.scope)):
            result = dp_fine_tune(
                module, x, y, config=self._config(context, len(y)), on_samples=context.progress.advance
            )
        return self._built(result, caveat)

    def wrap(self, module: nn.Module) -> nn.Module:
        with training_scope(module, checked_scope(self.scope)):
            private, _ = private_structure(module)
        return private.requires_grad_(True)

    def _config(self, context: Context, n: int) -> DPConfig:
        return DPConfig(
            epsilon=self.epsilon,
            noise_multiplier=self.noise_multiplier,
            delta=self.delta,
            epochs=self.epochs,
            batch_size=min(self.batch_size, n),
            max_grad_norm=self.max_grad_norm,
            lr=self.lr,
            optimizer=self.optimizer,
            momentum=self.momentum,
            seed=None if self.secret_seed else context.seed,
            secure_noise=self.secure_noise,
            physical_batch=context.batch_size,
        )

    def _begin(self, module: nn.Module, context: Context) -> str:
        """Sets the weights to start from; returns what that means for the guarantee."""
        if self.start == FRESH:
            reset_parameters(module, context.seed)
            return ""
        if self.start == PRESENT:
            caveat = (
                "Training began from the target's own weights: if these saw the training records before, epsilon says "
                "nothing of what they already hold. Name public weights in `start`, or leave it out."
            )
        else:
            path: Path = context.path(self.start)
            load_weights(inner(module), read_weights(path), self.start)
            caveat = f"epsilon covers this training only: it holds if {self.start} was made without these records."
        if self.new_head:
            reset_head(module, context.seed)
        return caveat

    def _built(self, result: DPResult, caveat: str) -> Built:
        budget = result.budget
        chart = curve_chart(
            [epoch.loss for epoch in result.history],
            [epoch.accuracy for epoch in result.history],
            "on the records drawn, before each step; computed without noise, so not covered by epsilon",
        )
        return Built(
            module=result.module.eval(),
            summary=f"Trained with DP-SGD: epsilon {budget.epsilon:.3g} at delta {budget.delta:.2g} "
            f"({budget.accountant.upper()} accountant, records added or removed), {budget.steps} steps with noise "
            f"multiplier {budget.noise_multiplier:.3g}.",
            metrics=(*_privacy_metrics(result), *cost_metrics(result.module, result.seconds, self.epochs)),
            figures=(chart,),
            warnings=tuple(text for text in (caveat, *result.warnings) if text),
            parameters={"accountant": budget.accountant, "epsilon_by_accountant": _by_accountant(result)},
        )


def reset_parameters(module: nn.Module, seed: int) -> None:
    """Draws all weights afresh under ``seed``, each layer by its own scheme; the global generator is untouched.

    Raises:
        UnsupportedError: for a layer with parameters that cannot reset itself.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in module.named_modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise UnsupportedError(
                    f"{name or 'the model'} ({type(layer).__name__}) cannot draw fresh weights: it has no "
                    "reset_parameters(). Name public weights in `start`"
                )


def _privacy_metrics(result: DPResult) -> tuple[Metric, ...]:
    budget = result.budget
    return (
        Metric(name="epsilon", value=budget.epsilon, higher_is_better=False, label="Privacy budget epsilon"),
        Metric(name="delta", value=budget.delta, higher_is_better=False, label="delta"),
        Metric(name="noise_multiplier", value=budget.noise_multiplier, label="Noise multiplier"),
        Metric(name="sample_rate", value=budget.sample_rate, unit="rate", label="Sampling rate"),
        Metric(name="steps", value=budget.steps, label="Noisy steps"),
        Metric(name="clipped", value=result.clipped, unit="rate", label="Share of gradients clipped"),
    )


def _by_accountant(result: DPResult) -> dict[str, float | None]:
    return {"prv": result.budget.prv, "pld": result.budget.pld, "rdp": result.budget.rdp}
