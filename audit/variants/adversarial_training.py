"""The variant that was trained on adversarial inputs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from ...attacks.evasion.pgd import PGD
from ...attacks.threat import Norm, Threat
from ...defenses.adversarial_training import AdversarialLoss, OnAdversarial, check_threat, fast, training_pgd
from ...defenses.awp import WeightPerturbation
from ...defenses.catastrophic import OverfittingGuard
from ...defenses.free import FreeLoss
from ...defenses.mart import MART
from ...defenses.objectives import Objective
from ...defenses.trades import TRADES, DivergenceAscent
from ...defenses.training import Guard
from ...defenses.validation import Accuracy
from ..checks.base import Context
from ..checks.evasion import Radius
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import Lesson, TrainingVariant, needs_numbers

Method = Literal["pgd", "trades", "mart", "fast", "free"]

_BETA = {"trades": 6.0, "mart": 5.0}
_VALIDATION_STEPS = 10
_GUARDED = (32, 128)
"""Fewest and most samples that the guard looks at; in between a sixtieth of the data, for a few percent of the cost."""
_ONLY: dict[str, tuple[Method, ...]] = {
    "beta": ("trades", "mart"),
    "steps": ("pgd", "trades", "mart"),
    "step_size": ("pgd", "trades", "mart"),
    "replays": ("free",),
    "awp": ("pgd", "trades", "mart", "fast"),
    "label_smoothing": ("pgd", "trades", "fast", "free"),
}
"""Options that belong to some methods only."""


class AdversarialTrainingVariant(TrainingVariant):
    """Trains the target further on adversarial inputs made afresh for each batch, from its present weights."""

    name: ClassVar[str] = "adversarial_training"
    title: ClassVar[str] = "Adversarial training"
    references: ClassVar[tuple[str, ...]] = (
        "Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083",
        "Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, arXiv 1901.08573",
        "Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020",
        "Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, arXiv 2004.05884",
        "Wong et al., Fast is Better than Free, arXiv 2001.03994",
        "Shafahi et al., Adversarial Training for Free, arXiv 1904.12843",
        "Rice et al., Overfitting in Adversarially Robust Deep Learning, arXiv 2002.11569",
    )
    version: ClassVar[int] = 3

    method: Method = Field(
        default="pgd",
        description="pgd, trades, mart, fast (one step from a random start, watched for catastrophic overfitting), or "
        "free (one backward pass serves weights and attack).",
    )
    norm: Norm = Field(default="linf", description="Norm of the perturbations trained against: linf, l2 or l1.")
    eps: Radius = Field(default="8/255", validate_default=True, description="Their radius, in input units.")
    steps: int = Field(default=7, ge=1, description="Gradient steps of the inner attack (pgd, trades, mart).")
    step_size: Radius | None = Field(
        default=None, description="Length of each; 10 eps / steps falling to 0 if left out."
    )
    beta: float | None = Field(
        default=None, ge=0, description="Weight of agreement with the clean prediction: trades (6), mart (5)."
    )
    awp: float = Field(
        default=0.0, ge=0, lt=1, description="Relative size of adversarial weight perturbation; 0: none."
    )
    replays: int = Field(default=4, ge=1, description="Passes over each batch (free); each epoch costs as many.")
    eps_warmup: float = Field(default=0.3, ge=0, le=1, description="Share of the training over which eps grows from 0.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the label spread over all classes.")
    validate_on: Literal["robust", "clean"] = Field(
        default="robust", description="Held-out accuracy that decides which epoch is kept: under PGD, or clean."
    )
    lr: float = Field(default=2e-3, gt=0, description="Highest learning rate.")

    @field_validator("norm")
    @classmethod
    def _trainable(cls, norm: Norm) -> Norm:
        check_threat(Threat(norm, 1.0))
        return norm

    @model_validator(mode="after")
    def _fitting(self) -> AdversarialTrainingVariant:
        for option, methods in _ONLY.items():
            given = getattr(self, option) != type(self).model_fields[option].default
            if given and self.method not in methods:
                raise ValueError(f"{option} is an option of method {' or '.join(methods)}, not {self.method}")
        return self

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        needs_numbers(target, "adversarial training")
        lesson = self.lesson(target, context)
        threat = Threat(self.norm, self.eps, bounds=target.bounds)
        taught = self.teach(
            target,
            context,
            lesson,
            self._objective(threat, lesson),
            validate=self._validate(threat, lesson),
            guard=self._guard(threat, lesson, context.seed),
        )
        return taught.built(
            f"Trained on inputs attacked with {self._how()} ({self.norm}, eps {self.eps:.3g}), {self.epochs} epochs.",
            "on the adversarial inputs it trained on",
        )

    def _objective(self, threat: Threat, lesson: Lesson) -> Objective:
        smoothing, weights = self.label_smoothing, lesson.class_weights
        beta = _BETA.get(self.method, 0.0) if self.beta is None else self.beta
        awp = WeightPerturbation(self.awp, self.eps_warmup) if self.awp else None
        size = None if self.step_size is None else float(self.step_size)
        match self.method:
            case "free":
                return FreeLoss(threat, self.replays, self.eps_warmup, smoothing, weights)
            case "trades":
                attack, loss = DivergenceAscent(self.steps, size), TRADES(beta, smoothing, weights)
            case "mart":
                attack, loss = training_pgd(self.steps, size), MART(beta, weights)
            case "fast":
                attack, loss = fast(threat), OnAdversarial(smoothing, weights)
            case "pgd":
                attack, loss = training_pgd(self.steps, size), OnAdversarial(smoothing, weights)
        return AdversarialLoss(threat, attack, self.eps_warmup, loss, awp)

    def _validate(self, threat: Threat, lesson: Lesson) -> Any:
        if lesson.held is None or self.validate_on == "clean":
            return None
        return Accuracy(*lesson.held, PGD(steps=_VALIDATION_STEPS, early_stop=False), threat)

    def _guard(self, threat: Threat, lesson: Lesson, seed: int) -> Guard | None:
        if self.method != "fast":
            return None
        size = min(max(_GUARDED[0], len(lesson.y) // 60), _GUARDED[1])
        rows = torch.randperm(len(lesson.y), generator=torch.Generator().manual_seed(seed))[:size]
        return OverfittingGuard(lesson.x[rows], lesson.y[rows], threat, fast(threat), self.eps_warmup)

    def _how(self) -> str:
        how = {
            "fast": "one signed-gradient step",
            "free": f"the gradients of {self.replays} passes over each batch",
            "pgd": f"{self.steps} steps of PGD",
            "mart": f"{self.steps} steps of PGD, misclassified inputs weighed more (MART)",
            "trades": f"{self.steps} steps away from the clean prediction (TRADES)",
        }[self.method]
        return how + (f", with weights perturbed by {self.awp:g} of their length" if self.awp else "")
