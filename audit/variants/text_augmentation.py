"""The variant of a text model that learned from the texts that broke it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from ...attacks.models import attacking
from ...attacks.text.encoded import EncodedModel
from ...attacks.text.engine import TextOutcome, attack_texts
from ...attacks.text.recipes import FREE, RECIPES, Resources, build
from ...attacks.text.resources.places import word_lists
from ...attacks.text.victim import Raw, Victim
from ...defenses.objectives import CrossEntropy
from ...reports.record import Metric
from .. import registry
from ..checks.base import Context
from ..checks.metrics import percent, rate
from ..checks.text_resources import gradient_service, needed, vocabulary
from ..errors import UnsupportedError
from ..loading.tokens import as_texts
from ..samples import Samples
from ..target import Target
from .base import Built
from .training import EncodedInputs, Lesson, Rows, TrainingVariant

OFFERED = tuple(name for name in RECIPES if name not in ("masked", "gbda"))
"""Text attacks for training: not the one that needs another model, nor the one that forgets what a text means."""


class TextAugmentationVariant(TrainingVariant):
    """Attacks the training texts, adds the versions that the target gets wrong with their true labels, and trains."""

    name: ClassVar[str] = "text_augmentation"
    title: ClassVar[str] = "Adversarial data augmentation"
    references: ClassVar[tuple[str, ...]] = (
        "Jia and Liang, Adversarial Examples for Evaluating Reading Comprehension Systems, arXiv 1707.07328",
        "Jin et al., Is BERT Really Robust? (TextFooler), arXiv 1907.11932",
    )

    attack: str = Field(default="deepwordbug", description="Attack of `text_evasion` that edits the texts.")
    queries: int = Field(default=100, ge=2, description="Most versions of a text that the target is asked about.")
    limit: int = Field(default=1000, ge=1, description="Attack at most so many training texts, evenly spaced.")
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is edited.")
    lr: float = Field(default=2e-4, gt=0, description="Highest learning rate.")

    @field_validator("attack")
    @classmethod
    def _attack_exists(cls, attack: str) -> str:
        if attack not in OFFERED:
            raise ValueError(registry.unknown("text attack for training", attack, OFFERED))
        return attack

    def surroundings(self) -> dict[str, int]:
        return word_lists()

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        if target.modality != "text":
            raise UnsupportedError(
                f"text_augmentation edits texts; for {target.modality} inputs use adversarial_training"
            )
        lesson = self.lesson(target, context)
        more = self.attacked(target, lesson, context)
        longer = replace(lesson, x=EncodedInputs(more.texts, target.encode), y=more.y)
        taught = self.teach(target, context, longer, CrossEntropy(class_weights=lesson.class_weights))
        built = taught.built(
            f"Trained on {len(lesson.y)} texts and {more.added} adversarial versions of them ({self.attack} broke "
            f"{percent(more.added / max(more.tried, 1))} of those it was tried on), {self.epochs} epochs.",
            "on its training data, adversarial texts included",
            self._warnings(more),
        )
        return replace(built, metrics=(*built.metrics, more.metric))

    def attacked(self, target: Target, lesson: Lesson, context: Context) -> Augmented:
        """The training texts followed by the versions that the target gets wrong."""
        texts = _texts(lesson)
        count = min(self.limit, len(texts))
        rows = np.arange(count) * len(texts) // count
        raws, y = as_texts(texts[rows]), lesson.y[torch.from_numpy(rows)]
        column = int(self.column == "second")
        outcome = attack_training(self.attack, target, raws, y, rows.tolist(), self.queries, context, column)
        broken = outcome.success.nonzero().flatten()
        versions = texts[rows[broken.numpy()]].copy()
        for place, row in enumerate(broken.tolist()):
            if versions.ndim == 1:
                versions[place] = outcome.texts[row]
            else:
                versions[place, column] = outcome.texts[row]
        everything = np.concatenate([texts, versions])
        return Augmented(everything, torch.cat([lesson.y, y[broken]]), len(broken), int(outcome.tried.sum()))

    def _warnings(self, more: Augmented) -> tuple[str, ...]:
        found = []
        if self.attack in FREE:
            found.append(f"{self.attack} does not try to keep the meaning: some of its texts may bear a wrong label.")
        if not more.added:
            found.append(f"{self.attack} broke no training text: this is plain fine-tuning.")
        return tuple(found)


def attack_training(
    name: str, target: Target, raws: Sequence[Raw], y: Tensor, ids: Sequence[int], queries: int, context: Context,
    column: int = 1,
) -> TextOutcome:  # fmt: skip
    """Attacks texts with what needs no other model; ``name`` is one of :data:`OFFERED`."""
    attack = build(name, Resources(words=lambda: vocabulary(target)))
    model = EncodedModel(target.encode, target.module, target.device)
    victim = Victim(model, raws, y.tolist(), column=column)
    services = needed(attack.services, {"gradients": lambda: gradient_service(target, victim)})
    context.progress.start(f"attacking texts: {name}", len(raws))
    with attacking(target.module):
        return attack_texts(
            attack, model, raws, y, budget=queries, column=column, seed=context.seed, ids=ids, services=services,
            progress=context.progress.advance,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Augmented:
    """Raw texts, or pairs, with the ``added`` last; labels int64; how many were ``tried``."""

    texts: NDArray[np.object_]
    y: Tensor
    added: int
    tried: int

    @property
    def metric(self) -> Metric:
        label = "Training texts that the attack broke"
        return rate("training_texts_broken", self.added, self.tried, label=label, higher_is_better=None)


def _texts(lesson: Lesson) -> NDArray[np.object_]:
    """The raw texts that are trained on, without those held out."""
    if isinstance(lesson.x, Rows):
        return lesson.x.inputs.inputs[lesson.x.rows.numpy()]
    return lesson.x.inputs[np.arange(len(lesson.x))]
