"""The variant of a text model that votes over versions with most words hidden."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from ...defenses.objectives import CrossEntropy
from ...defenses.random_mask import RandomMask, Voted
from ..checks.base import Context
from ..errors import UnsupportedError
from ..loading.tokens import HuggingFaceEncode
from ..loading.voting import VotingEncode, voting
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import TrainingVariant


class RandomMaskVariant(TrainingVariant):
    """Trains a text model further on texts with random tokens masked, and answers by its vote over masked versions.

    An answer that the votes do not decide is none: the class `(undecided)`, which is never right. The masks are one
    fixed set for all texts with as many words, known to the attacker. How many replaced words the vote provably
    withstands comes from the check `text_certification`.
    """

    name: ClassVar[str] = "random_mask"
    title: ClassVar[str] = "Vote over random masks"
    references: ClassVar[tuple[str, ...]] = (
        "Zeng et al., Certified Robustness to Text Adversarial Attacks by Randomized [MASK], arXiv 2105.03743",
    )
    version: ClassVar[int] = 2

    masked: float = Field(default=0.7, gt=0, lt=1, description="Share of the words that are hidden.")
    copies: int = Field(default=64, ge=1, description="Masked versions that vote; each costs a pass of the model.")
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="No answer where chance explains the lead with more than this probability.",
    )
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is masked.")

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        tokenizer = self._encode(target).tokenizer
        lesson = self.lesson(target, context)
        plain = CrossEntropy(class_weights=lesson.class_weights)
        objective = RandomMask(plain, self.masked, tokenizer.mask_token_id, tuple(tokenizer.all_special_ids))
        taught = self.teach(target, context, lesson, objective)
        built = taught.built(
            f"Trained with {100 * self.masked:g} % of the tokens masked, {self.epochs} epochs; answers by the "
            f"vote over {self.copies} versions with as many words hidden.",
            "on the masked texts it trained on",
        )
        return replace(built, module=self.wrap(built.module).eval())

    def wrap(self, module: nn.Module) -> nn.Module:
        return Voted(module, self.alpha)

    def deployed(self, target: Target) -> Target:
        return voting(
            target, VotingEncode(self._encode(target), self.masked, self.copies, int(self.column == "second"))
        )

    def _encode(self, target: Target) -> HuggingFaceEncode:
        encode = target.encode
        if not isinstance(encode, HuggingFaceEncode) or encode.tokenizer.mask_token_id is None:
            raise UnsupportedError("random_mask needs a Hugging Face tokenizer with a mask token")
        return encode
