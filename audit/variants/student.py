"""The variant that is a smaller copy of the target and learned from its answers."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from ...defenses.compression.channel_pruning import prune_channels
from ...defenses.compression.layer_dropping import drop_layers, transformer_layers
from ...defenses.distillation import Distillation
from ..checks.base import Context
from ..errors import UnsupportedError
from ..recipe import RANDOM, Recipe
from ..samples import Samples
from ..target import Target
from .base import Built
from .compression import agreement, compared_inputs
from .training import TrainingVariant, copied, reset_parameters


class StudentVariant(TrainingVariant):
    """Distils the target into a network of the same kind with fewer channels in each layer, or a transformer with fewer
    layers."""

    name: ClassVar[str] = "student"
    title: ClassVar[str] = "Smaller student"
    references: ClassVar[tuple[str, ...]] = (
        "Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531",
        "Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710",
        "Sanh et al., DistilBERT, a distilled version of BERT, arXiv 1910.01108",
    )
    version: ClassVar[int] = 2

    width: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of each layer's channels that the student has; of a transformer's layers.",
    )
    start: Literal["target", "random"] = Field(
        default="target",
        description="Weights to start from: the target's largest channels or evenly spaced layers, or fresh ones.",
    )
    temperature: float = Field(default=4.0, gt=0, description="Divides the logits of teacher and student.")
    teacher_weight: float = Field(default=0.9, ge=0, le=1, description="Of the teacher's answers against the labels.")

    def recipe(self) -> Recipe | None:
        return Recipe() if self.start == RANDOM else super().recipe()

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        lesson = self.lesson(target, context)
        student = self.wrap(copied(target))
        if self.start == "random":
            reset_parameters(student, context.seed)
        teacher = copied(target).eval()
        objective = Distillation(teacher, self.temperature, self.teacher_weight, class_weights=lesson.class_weights)
        taught = self.teach(target, context, lesson, objective, module=student)
        built = taught.built(
            f"A copy with {self._size(target, student)} learned the target's answers at temperature "
            f"{self.temperature:g} (weight {self.teacher_weight:g}), {self.epochs} epochs.",
            "on its training data",
        )
        same = agreement(taught.module, target.module, compared_inputs(target, context, self.train), "the target")
        return replace(built, metrics=(*built.metrics, same))

    def wrap(self, module: nn.Module) -> nn.Module:
        if transformer_layers(module) is not None:
            drop_layers(module, 1 - self.width)
            return module
        try:
            prune_channels(module, 1 - self.width)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"student: no smaller copy can be made of this model. It takes a transformers model, or one whose "
                f"channels can be removed ({error}); distillation trains a student of the same size"
            ) from error
        return module

    def _size(self, target: Target, student: nn.Module) -> str:
        before, after = transformer_layers(target.module), transformer_layers(student)
        if before is None or after is None:
            return f"{100 * self.width:g} % of the channels"
        return f"{len(after)} of {len(before)} layers"
