"""The variant that asks several networks."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from ...defenses.ensembles import Combination, Ensemble, fit_weights
from ...defenses.training import TrainingConfig, fit
from ...reports.record import Metric
from ..cache import seed_for
from ..checks.base import Context
from ..loading.model import inner
from ..loading.weights import load_weights, read_weights
from ..samples import Samples
from ..target import Target
from .base import Built, Variant
from .training import reset_parameters, training_data


class EnsembleVariant(Variant):
    """The target together with further networks of its kind, read from files or trained afresh; attacked as a whole."""

    name: ClassVar[str] = "ensemble"
    title: ClassVar[str] = "Ensemble"
    references: ClassVar[tuple[str, ...]] = (
        "Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, "
        "arXiv 1612.01474",
        "He et al., Adversarial Example Defenses: Ensembles of Weak Defenses are not Strong, arXiv 1706.04701",
    )

    members: tuple[str, ...] = Field(default=(), description="Weight files of further networks of the same structure.")
    count: int = Field(default=0, ge=0, description="Further networks trained afresh on `train`, each its own seed.")
    train: str | None = Field(default=None, description="Training data of those networks.")
    epochs: int = Field(default=10, ge=1, description="Passes over `train`.")
    batch_size: int = Field(default=64, ge=1, description="Samples per step of that training.")
    lr: float = Field(default=1e-3, gt=0, description="Its highest learning rate (AdamW, cosine).")
    combine: Combination = Field(
        default="logits", description="logits (their mean), weighted (mean probability by fitted weights) or majority."
    )
    held_out: str | None = Field(
        default=None, description="Data that no member saw, on which `weighted` fits the members' weights."
    )

    @model_validator(mode="after")
    def _whole(self) -> EnsembleVariant:
        if not (self.members or self.count):
            raise ValueError("name weight files in `members`, or how many networks to train in `count`")
        if bool(self.count) != (self.train is not None):
            raise ValueError("`count` and `train` go together: the networks to train, and on what")
        if (self.combine == "weighted") != (self.held_out is not None):
            raise ValueError("`combine: weighted` and `held_out` go together: the weights are fitted on it")
        return self

    def files(self) -> tuple[str, ...]:
        return (*self.members, *(file for file in (self.train, self.held_out) if file is not None))

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        module, seconds = self.wrap(copy.deepcopy(target.module)), 0.0
        networks = [network for network in module.members if isinstance(network, nn.Module)][1:]
        for network, file in zip(networks, self.members, strict=False):
            load_weights(inner(network), read_weights(context.path(file)), file)
        fresh = networks[len(self.members) :]
        if self.train is not None:
            context.progress.start("training members", len(fresh) * self.epochs * len(context.samples(self.train)))
        for number, network in enumerate(fresh):
            seconds += self._trained(network, number, target, context)
        module.eval()
        metrics = ()
        if self.held_out is not None:
            metrics = self._weighed(module, self.held_out, target, context)
        if fresh:
            took = Metric(
                name="training_seconds", value=seconds, unit="s", higher_is_better=False, label="Training time"
            )
            metrics = (*metrics, took)
        how = {"logits": "mean of logits", "weighted": "weighted mean of probabilities", "majority": "majority vote"}
        return Built(
            module=module,
            summary=f"{1 + len(networks)} networks of the same structure, {how[self.combine]}.",
            metrics=metrics,
            parameters={"weights": module.weights.tolist()} if self.combine == "weighted" else {},
        )

    def wrap(self, module: nn.Module) -> Ensemble:
        others = [copy.deepcopy(module) for _ in range(len(self.members) + self.count)]
        return Ensemble([module, *others], self.combine)

    def _trained(self, network: nn.Module, number: int, target: Target, context: Context) -> float:
        assert self.train is not None
        seed = seed_for(context.seed, "member", str(number))
        reset_parameters(network, seed)
        x, y = training_data(target, context, self.train)
        config = TrainingConfig(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, seed=seed)
        return fit(network, x, y, config=config, on_samples=context.progress.advance).seconds

    def _weighed(self, module: Ensemble, held_out: str, target: Target, context: Context) -> tuple[Metric, ...]:
        x, y = training_data(target, context, held_out)
        weights = fit_weights(module, [x[part].to(target.device) for part in torch.arange(len(y)).split(256)], y)
        return tuple(
            Metric(name=f"weight_{number}", value=float(weight), unit="rate", label=f"Weight of member {number}")
            for number, weight in enumerate(weights)
        )
