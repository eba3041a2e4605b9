"""The variant that learned from the target's answers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ...defenses.distillation import Distillation
from ..checks.base import Context
from ..recipe import RANDOM, Recipe
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import TrainingVariant, copied, reset_parameters


class DistillationVariant(TrainingVariant):
    """Trains a student of the target's structure on the target's softened answers beside the labels.

    The student starts from fresh weights, or from the target's own. For its privacy it matters that the answers on
    ``train`` carry what the target remembers of its own training data.
    """

    name: ClassVar[str] = "distillation"
    title: ClassVar[str] = "Knowledge distillation"
    references: ClassVar[tuple[str, ...]] = (
        "Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531",
        "Furlanello et al., Born-Again Neural Networks, arXiv 1805.04770",
    )
    version: ClassVar[int] = 2

    temperature: float = Field(default=4.0, gt=0, description="Divides the logits of teacher and student.")
    teacher_weight: float = Field(default=0.9, ge=0, le=1, description="Of the teacher's answers against the labels.")
    start: Literal["random", "target"] = Field(default="random", description="Weights that the student starts from.")

    def recipe(self) -> Recipe | None:
        return Recipe() if self.start == RANDOM else super().recipe()

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        lesson = self.lesson(target, context)
        student = copied(target)
        if self.start == "random":
            reset_parameters(student, context.seed)
        teacher = copied(target).eval()
        objective = Distillation(teacher, self.temperature, self.teacher_weight, class_weights=lesson.class_weights)
        taught = self.teach(target, context, lesson, objective, module=student)
        return taught.built(
            f"Learned the target's answers at temperature {self.temperature:g} (weight {self.teacher_weight:g}) from "
            f"{'fresh weights' if self.start == 'random' else 'its own weights'}, {self.epochs} epochs.",
            "on its training data",
        )
