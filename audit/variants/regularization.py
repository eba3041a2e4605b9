"""The variant that was trained with label smoothing, mixup and weight decay."""

from __future__ import annotations

import copy
from typing import ClassVar

from pydantic import Field

from ...defenses.mixing import mixing
from ...defenses.regularization import Regularized
from ...defenses.training import fit
from ..checks.base import Context
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import TrainingVariant, cost_metrics, history_chart, training_data


class RegularizationVariant(TrainingVariant):
    """Trains the target further with label smoothing, mixup and weight decay, from its present weights."""

    name: ClassVar[str] = "regularization"
    title: ClassVar[str] = "Regularised training"
    references: ClassVar[tuple[str, ...]] = (
        "Szegedy et al., Rethinking the Inception Architecture, arXiv 1512.00567",
        "Zhang et al., mixup: Beyond Empirical Risk Minimization, arXiv 1710.09412",
        "Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101",
    )

    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="Share of the label spread over all classes.")
    mixup: float = Field(default=0.2, ge=0, description="Alpha of the Beta distribution of the mix; 0 for none.")
    weight_decay: float = Field(default=0.01, ge=0, description="Of matrices and kernels; biases and norms are spared.")

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        x, y = training_data(target, context, self.train)
        module = copy.deepcopy(target.module)
        context.progress.start("regularised training", self.epochs * len(y))
        history = fit(
            module,
            x,
            y,
            config=self.config(context.seed),
            objective=Regularized(self.label_smoothing, mixing=mixing(self.mixup, 0)),
            on_samples=context.progress.advance,
        )
        return Built(
            module=module.eval(),
            summary=f"Trained with label smoothing {self.label_smoothing:g}, mixup {self.mixup:g} and weight decay "
            f"{self.weight_decay:g}, {self.epochs} epochs.",
            metrics=cost_metrics(module, history.seconds, len(history.epochs)),
            figures=(history_chart(history, "on the mixed inputs it trained on"),),
        )
