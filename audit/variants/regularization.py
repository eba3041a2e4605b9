"""The variant that was trained with losses and layers that regularise."""

from __future__ import annotations

from contextlib import ExitStack
from typing import ClassVar

from pydantic import Field, model_validator

from ...defenses.dropout import dropout
from ...defenses.mixing import mixing
from ...defenses.penalties import InputGradient, Jacobian, Penalty
from ...defenses.regularization import Regularized
from ...defenses.spectral_norm import spectral_norm
from ..checks.base import Context
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import TrainingVariant, copied, needs_numbers

MIXUP = 0.2
"""Alpha where none is given."""


class RegularizationVariant(TrainingVariant):
    """Trains the target further, from its present weights, with whatever keeps it from overfitting."""

    name: ClassVar[str] = "regularization"
    title: ClassVar[str] = "Regularised training"
    references: ClassVar[tuple[str, ...]] = (
        "Szegedy et al., Rethinking the Inception Architecture, arXiv 1512.00567",
        "Zhang et al., mixup: Beyond Empirical Risk Minimization, arXiv 1710.09412",
        "Yun et al., CutMix, arXiv 1905.04899",
        "Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101",
        "Ross and Doshi-Velez, Regularizing Input Gradients, arXiv 1711.09404",
        "Hoffman et al., Robust Learning with Jacobian Regularization, arXiv 1908.02729",
        "Miyato et al., Spectral Normalization, arXiv 1802.05957",
        "Cubuk et al., RandAugment, arXiv 1909.13719",
    )
    version: ClassVar[int] = 3

    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="Share of the label spread over all classes.")
    mixup: float | None = Field(
        default=None, ge=0, description="Alpha of the Beta distribution of the mix; 0: none. Left out: 0.2, texts none."
    )
    cutmix: float = Field(default=0.0, ge=0, description="Alpha of CutMix (images); with mixup, one of both per batch.")
    weight_decay: float = Field(default=0.01, ge=0, description="Of matrices and kernels; biases and norms are spared.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of all dropout layers; without any, before the head.")
    input_gradient: float = Field(default=0.0, ge=0, description="Weight of the squared gradient of the loss.")
    jacobian: float = Field(default=0.0, ge=0, description="Weight of the squared Jacobian of the logits, halved.")
    jacobian_projections: int = Field(default=1, ge=1, description="Random directions by which it is estimated.")
    spectral_norm: float | None = Field(
        default=None, gt=0, description="Largest singular value given to every weight; left alone if left out."
    )

    @model_validator(mode="after")
    def _whole(self) -> RegularizationVariant:
        if self.spectral_norm is not None and self.scope != "all":
            raise ValueError("spectral_norm rescales every layer: it needs scope all")
        return self

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        mixup = self._mixup(target)
        lesson = self.lesson(target, context)
        module = copied(target)
        mixed = mixing(mixup, self.cutmix)
        objective = Regularized(self.label_smoothing, lesson.class_weights, mixed, self._penalties())
        with ExitStack() as around:
            if self.dropout:
                around.enter_context(dropout(module, self.dropout))
            if self.spectral_norm is not None:
                around.enter_context(spectral_norm(module, self.spectral_norm))
            taught = self.teach(target, context, lesson, objective, module=module)
        on = "on the mixed inputs it trained on" if mixed else "on the inputs it trained on"
        return taught.built(f"Trained with {self._what(mixup)}, {self.epochs} epochs.", on)

    def _mixup(self, target: Target) -> float:
        for name in ("mixup", "cutmix", "input_gradient", "jacobian"):
            if getattr(self, name):
                needs_numbers(target, name)
        default = 0.0 if target.modality == "text" else MIXUP
        return default if self.mixup is None else self.mixup

    def _penalties(self) -> tuple[Penalty, ...]:
        penalties: list[Penalty] = []
        if self.input_gradient:
            penalties.append(InputGradient(self.input_gradient))
        if self.jacobian:
            penalties.append(Jacobian(self.jacobian, self.jacobian_projections))
        return tuple(penalties)

    def _what(self, mixup: float) -> str:
        values = {
            "label smoothing": self.label_smoothing,
            "mixup": mixup,
            "CutMix": self.cutmix,
            "weight decay": self.weight_decay,
            "dropout": self.dropout,
            "an input-gradient penalty of": self.input_gradient,
            "a Jacobian penalty of": self.jacobian,
            "spectral norms of": self.spectral_norm,
        }
        parts = [f"{name} {value:g}" for name, value in values.items() if value]
        return ", ".join(parts) if parts else "plain cross-entropy"
