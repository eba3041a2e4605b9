"""The variant that was trained further and nothing else."""

from __future__ import annotations

from typing import ClassVar

from ...defenses.objectives import CrossEntropy
from ..checks.base import Context
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import TrainingVariant, chosen_scope, scope_text


class FineTuningVariant(TrainingVariant):
    """Trains the target further with plain cross-entropy: all of it, its head, its last blocks, or LoRA adapters.

    What other variants are to be compared with: it had the same data and as many steps.
    """

    name: ClassVar[str] = "fine_tuning"
    title: ClassVar[str] = "Fine-tuning"
    references: ClassVar[tuple[str, ...]] = ("Hu et al., LoRA, arXiv 2106.09685",)
    version: ClassVar[int] = 2

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        lesson = self.lesson(target, context)
        taught = self.teach(target, context, lesson, CrossEntropy(class_weights=lesson.class_weights))
        what = scope_text(chosen_scope(self.scope, self.lora_rank, self.lora_alpha))
        return taught.built(
            f"Trained further with cross-entropy, {what}, {self.epochs} epochs.", "on its training data"
        )
