"""The variant of a text model that was trained on perturbed embeddings."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ...attacks.text.gradients import token_embedding
from ...defenses.freelb import FreeLB
from ..checks.base import Context
from ..errors import UnsupportedError
from ..loading.tokens import HuggingFaceEncode
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import TrainingVariant


class FreeLBVariant(TrainingVariant):
    """Trains a text model further on adversarial perturbations of its word embeddings (FreeLB)."""

    name: ClassVar[str] = "freelb"
    title: ClassVar[str] = "Adversarial training of embeddings"
    version: ClassVar[int] = 2
    references: ClassVar[tuple[str, ...]] = (
        "Zhu et al., FreeLB: Enhanced Adversarial Training for Natural Language Understanding, arXiv 1909.11764",
    )

    eps: float = Field(default=0.5, gt=0, description="Largest l2 norm of a text's perturbation, over all its tokens.")
    step_size: float = Field(default=0.1, gt=0, description="l2 length of each gradient step.")
    steps: int = Field(default=3, ge=1, description="Points of the path; each costs about a training step.")
    start: float = Field(default=0.1, ge=0, description="Largest l2 norm of the random start.")
    pad: int | None = Field(
        default=None,
        ge=0,
        description="Id of the token that pads texts, for a factory's tokenizer without attention mask; the "
        "embedding's padding_idx if left out.",
    )
    lr: float = Field(default=2e-4, gt=0, description="Highest learning rate.")

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        if target.modality != "text":
            raise UnsupportedError(
                f"freelb perturbs the word embeddings of text models; for {target.modality} inputs use "
                "adversarial_training"
            )
        lesson = self.lesson(target, context)
        objective = FreeLB(self.eps, self.step_size, self.steps, self.start, lesson.class_weights, self.pad)
        taught = self.teach(target, context, lesson, objective)
        return taught.built(
            f"Trained on embeddings perturbed in {self.steps} steps within {self.eps:g} (l2 over a text), "
            f"{self.epochs} epochs.",
            "on the perturbed embeddings it trained on",
            self._warnings(target),
        )

    def _warnings(self, target: Target) -> tuple[str, ...]:
        masked = isinstance(target.encode, HuggingFaceEncode)
        if masked or self.pad is not None or token_embedding(target.module).padding_idx is not None:
            return ()
        return ("Nothing says which token pads a text, so padding was perturbed too: name its id in `pad`.",)
