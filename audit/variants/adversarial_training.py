"""The variant that was trained on adversarial inputs."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

from pydantic import Field

from ...attacks.threat import Threat
from ...defenses.adversarial_training import AdversarialLoss, fast, training_pgd
from ...defenses.training import fit
from ..checks.base import Context
from ..checks.evasion import Radius
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import TrainingVariant, cost_metrics, history_chart, training_data


class AdversarialTrainingVariant(TrainingVariant):
    """Trains the target further on adversarial inputs made afresh for each batch, from its present weights."""

    name: ClassVar[str] = "adversarial_training"
    title: ClassVar[str] = "Adversarial training"
    references: ClassVar[tuple[str, ...]] = (
        "Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083",
        "Wong et al., Fast is Better than Free, arXiv 2001.03994",
    )

    method: Literal["pgd", "fast"] = Field(default="pgd", description="pgd, or fast: one step from a random start.")
    norm: Literal["linf", "l2", "l1"] = Field(default="linf", description="Norm of the perturbations trained against.")
    eps: Radius = Field(default="8/255", validate_default=True, description="Their radius, in input units.")
    steps: int = Field(default=7, ge=1, description="Gradient steps of the inner attack (pgd).")
    eps_warmup: float = Field(default=0.3, ge=0, le=1, description="Share of the training over which eps grows from 0.")
    lr: float = Field(default=2e-3, gt=0, description="Highest learning rate.")

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        x, y = training_data(target, context, self.train)
        threat = Threat(self.norm, self.eps, bounds=target.bounds)
        attack = fast(threat) if self.method == "fast" else training_pgd(self.steps)
        objective = AdversarialLoss(threat, attack, self.eps_warmup)
        module = copy.deepcopy(target.module)
        context.progress.start("adversarial training", self.epochs * len(y))
        history = fit(
            module, x, y, config=self.config(context.seed), objective=objective, on_samples=context.progress.advance
        )
        how = "one signed-gradient step" if self.method == "fast" else f"{self.steps} steps of PGD"
        return Built(
            module=module.eval(),
            summary=f"Trained on inputs attacked with {how} ({self.norm}, eps {self.eps:.3g}), {self.epochs} epochs.",
            metrics=cost_metrics(module, history.seconds, len(history.epochs)),
            figures=(history_chart(history, "on the adversarial inputs it trained on"),),
        )
