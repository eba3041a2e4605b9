"""The variant that answers by the mean over Gaussian noise."""

from __future__ import annotations

import copy
from typing import ClassVar

from pydantic import Field
from torch import nn

from ...defenses.objectives import CrossEntropy
from ...defenses.smoothing import GaussianNoise, Smoothed
from ...defenses.training import TrainingConfig, fit
from ...reports.record import Metric
from ..checks.base import Context
from ..errors import UnsupportedError
from ..samples import Samples
from ..target import Target
from .base import Built, Variant
from .training import training_data


class RandomizedSmoothingVariant(Variant):
    """Averages the target's probabilities over noisy copies of the input; radii come from the `certification` check.

    The noise is one fixed set, known to the attacker, so that answers repeat and gradients are those of the average.
    """

    name: ClassVar[str] = "randomized_smoothing"
    title: ClassVar[str] = "Randomised smoothing"
    references: ClassVar[tuple[str, ...]] = (
        "Cohen et al., Certified Adversarial Robustness via Randomized Smoothing, arXiv 1902.02918",
        "Salman et al., Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers, arXiv 1906.04584",
    )

    sigma: float = Field(default=0.25, gt=0, description="Standard deviation of the noise, in input units.")
    draws: int = Field(default=32, ge=1, description="Noisy copies per answer; each costs a pass of the target.")
    noise_seed: int = Field(default=0, ge=0, description="Of the fixed set of noise.")
    train: str | None = Field(
        default=None, description="Training data: the target is first trained further under this noise."
    )
    epochs: int = Field(default=5, ge=1, description="Passes over `train`.")
    batch_size: int = Field(default=64, ge=1, description="Samples per step of that training.")
    lr: float = Field(default=1e-3, gt=0, description="Its highest learning rate (AdamW, cosine).")

    def files(self) -> tuple[str, ...]:
        return () if self.train is None else (self.train,)

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        if target.modality == "text":
            raise UnsupportedError("Gaussian noise on the numbers of tokens means nothing: smoothing is not for text")
        body, metrics, warnings = copy.deepcopy(target.module), (), ()
        if self.train is None:
            summary = "The target's weights as they are."
            warnings = (
                "The target was not trained under noise, and networks seldom withstand noise that they have not seen: "
                "name training data in `train`.",
            )
        else:
            metrics = (self._trained(body, self.train, target, context),)
            summary = f"The target trained for {self.epochs} epochs under the noise."
        module = self.wrap(body).eval()
        return Built(
            module=module,
            summary=f"Mean probability over {self.draws} noisy copies, sigma {self.sigma:g}. {summary}",
            metrics=metrics,
            warnings=warnings,
        )

    def wrap(self, module: nn.Module) -> nn.Module:
        return Smoothed(module, self.sigma, self.draws, self.noise_seed)

    def _trained(self, body: nn.Module, train: str, target: Target, context: Context) -> Metric:
        x, y = training_data(target, context, train)
        context.progress.start("training under noise", self.epochs * len(y))
        history = fit(
            body,
            x,
            y,
            config=TrainingConfig(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, seed=context.seed),
            objective=GaussianNoise(CrossEntropy(), self.sigma),
            on_samples=context.progress.advance,
        )
        return Metric(
            name="training_seconds", value=history.seconds, unit="s", higher_is_better=False, label="Training time"
        )
