"""The variant of a text model that was trained with most words hidden."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ...defenses.objectives import CrossEntropy
from ...defenses.random_mask import RandomMask
from ..checks.base import Context
from ..errors import UnsupportedError
from ..loading.tokens import HuggingFaceEncode
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import TrainingVariant


class RandomMaskVariant(TrainingVariant):
    """Trains a text model further on texts with random tokens masked, as its vote over masked texts needs.

    What the vote answers and how many substituted words it withstands comes from the check `text_certification`.
    """

    name: ClassVar[str] = "random_mask"
    title: ClassVar[str] = "Training with random masks"
    references: ClassVar[tuple[str, ...]] = (
        "Zeng et al., Certified Robustness to Text Adversarial Attacks by Randomized [MASK], arXiv 2105.03743",
    )

    masked: float = Field(default=0.7, gt=0, lt=1, description="Share of the tokens that are hidden.")

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        tokenizer = target.encode.tokenizer if isinstance(target.encode, HuggingFaceEncode) else None
        if tokenizer is None or tokenizer.mask_token_id is None:
            raise UnsupportedError("random_mask needs a Hugging Face tokenizer with a mask token")
        lesson = self.lesson(target, context)
        plain = CrossEntropy(class_weights=lesson.class_weights)
        objective = RandomMask(plain, self.masked, tokenizer.mask_token_id, tuple(tokenizer.all_special_ids))
        taught = self.teach(target, context, lesson, objective)
        return taught.built(
            f"Trained with {100 * self.masked:g} % of the tokens masked, {self.epochs} epochs.",
            "on the masked texts it trained on",
        )
