"""The membership attacks that a spec can name, between the audit's samples and the attacks' arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...privacy.membership.augment import Augmentations
from ...privacy.membership.label_only import LabelOnly
from ...privacy.membership.lira import LiRA, Variance
from ...privacy.membership.quantile import QuantileRegression
from ...privacy.membership.rmia import RMIA
from ...privacy.membership.shokri import ShokriAttack
from ...privacy.membership.statistics import References, label_log_probability, scaled_confidence
from ...privacy.membership.threshold import SCORE_KINDS, membership_scores
from ...privacy.shadow.training import ShadowConfig
from ..errors import UnsupportedError
from ..recipe import BASE, RANDOM, Recipe
from ..target import Access, Target
from ..variants.training import TrainedPart, chosen_scope
from .base import Context, Progress
from .membership_shadows import caveat, origin, trained_shadows

AttackName = Literal["loss", "confidence", "entropy", "margin", "lira", "rmia", "quantile", "shokri", "label_only"]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
WITH_SHADOWS: frozenset[AttackName] = frozenset({"lira", "rmia", "shokri"})

NOTHING_TO_KEEP = (
    "new_head and scope keep a part of the weights that training starts from, and random weights have none worth "
    "keeping: name in `start` those that the model was fine-tuned from"
)

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Queries:
    """What the attacker has of every record, members first.

    Attributes:
        x: encoded ``(n, ...)``, on the CPU; ``(n, 0)`` where the attack looks at logits only.
        y: labels int64 ``(n,)``.
        ids: int64 ``(n,)``.
        known: bool ``(n,)``: the non-members.
    """

    x: Tensor
    y: NDArray[np.int64]
    ids: Tensor
    known: NDArray[np.bool_]


class AttackOptions(BaseModel):
    """Options of the membership check that concern its attack."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attack: AttackName = Field(
        default="loss",
        description="Threshold on loss, confidence, entropy or margin; with shadow models lira, rmia or shokri; "
        "quantile (quantile regression on non-members); label_only.",
    )
    shadows: int = Field(default=16, ge=2, le=512, multiple_of=2, description="Shadow models of lira, rmia, shokri.")
    online: bool = Field(
        default=True, description="lira, rmia: compare with models trained on the record too; otherwise only without."
    )
    variance: Variance = Field(default="auto", description="lira: record, fixed, or auto (fixed with few models).")
    epochs: int = Field(default=20, ge=1, description="Passes of each shadow model over its half of the records.")
    shadow_batch_size: int = Field(default=64, ge=2, description="Records per step of a shadow model.")
    optimizer: Literal["sgd", "adam"] = Field(default="adam", description="Of the shadow models: sgd or adam.")
    lr: float = Field(default=1e-3, gt=0, description="Highest learning rate of the shadow models.")
    weight_decay: float = Field(default=0.0, ge=0, description="Of the shadow models.")
    start: str | None = Field(
        default=None,
        description="Weights that the shadow models start from: `random`; a file, such as the pre-trained weights that "
        "the model was fine-tuned from; or `base`: for a variant, the weights of the model that it was made from. Left "
        "out: as the variant's own training began, unless that was from the base, which may have seen these records.",
    )
    new_head: bool | None = Field(
        default=None,
        description="Draw the shadow models' last layer afresh; with start other than random. Left out: as a variant "
        "whose training began there did, else no.",
    )
    scope: TrainedPart | None = Field(
        default=None,
        description="What of the shadow models is trained: all, head, the number of last blocks, or lora (adapters and "
        "head); the rest stays as in start. Left out: as in a variant whose training began there, else all.",
    )
    lora_rank: int = Field(default=8, ge=1, description="Rank of the shadow models' adapters (scope lora).")
    lora_alpha: float = Field(default=16.0, gt=0, description="These count alpha / rank times (scope lora).")
    flip: bool = Field(default=False, description="lira, rmia, label_only: also ask for the mirror image.")
    shifts: int = Field(default=0, ge=0, le=4, description="lira, rmia, label_only: also ask for shifts, in pixels.")

    @property
    def with_shadows(self) -> bool:
        return self.attack in WITH_SHADOWS

    @property
    def start_files(self) -> tuple[str, ...]:
        """The file of weights to start from, where the options name one."""
        return () if self.start in (None, RANDOM, BASE) else (self.start,)

    def recipe(self, target: Target) -> Recipe:
        """How the shadow models are trained: as the options say, else as the target was, else from random weights.

        A variant that was trained from the base is not imitated unasked: where the base saw the records too, its shadow
        models would all know them. Only its owner can say.

        Raises:
            UnsupportedError: when the options do not go with where training begins.
        """
        known = target.recipe or Recipe()
        if self.start is None and known.start == BASE:
            known = Recipe()
        elif self.start not in (None, known.start):
            known = Recipe(self.start)
        scope = None if self.scope is None else chosen_scope(self.scope, self.lora_rank, self.lora_alpha)
        wanted = Recipe(
            known.start,
            known.new_head if self.new_head is None else self.new_head,
            known.scope if scope is None else scope,
        )
        if wanted.start == RANDOM and self.keeps_weights:
            raise UnsupportedError(f"membership: {NOTHING_TO_KEEP}")
        return wanted

    @property
    def keeps_weights(self) -> bool:
        """Whether options ask for some of the weights to stay as they were at the start."""
        return bool(self.new_head) or self.scope not in (None, "all")

    @property
    def needs_inputs(self) -> bool:
        return self.attack not in SCORE_KINDS

    def access(self) -> frozenset[Access]:
        """Shadow models need the architecture, which whoever has gradients has."""
        if self.with_shadows:
            return frozenset({"gradients", "scores"})
        return frozenset({"labels"}) if self.attack == "label_only" else frozenset({"scores"})

    def versions(self, x: Tensor) -> list[Tensor]:
        """The queries that are asked of each record, itself first."""
        return Augmentations(self.flip, self.shifts)(x) if self.attack in ("lira", "rmia") else [x]

    def gather(self, target: Target, queries: Queries, context: Context) -> Tensors:
        """What the attack needs besides the target's logits ``target_logits`` ``(q, n, k)``: recorded as evidence."""
        batch_size, progress = context.batch_size or 256, context.progress
        if self.attack == "label_only":
            return {"label_only_scores": self.label_only(target, queries, context.seed, batch_size, progress)}
        if not self.with_shadows:
            return {}
        n = len(queries.y)
        views = self.versions(queries.x)
        asked = self.shadows * n * len(views) * _FORWARD_SHARE
        progress.start(f"{self.shadows} shadow models", self.shadows * self.epochs * n / 2 + asked)
        recipe = self.recipe(target)
        module, config = origin(target, recipe.start, context), self.shadow_config(context.seed)
        y = torch.from_numpy(queries.y)
        with trained_shadows(module, recipe, queries.x, y, config, progress.advance) as shadows:
            recorded = {"shadow_member": shadows.member}
            logits = torch.stack(
                [shadows.logits(view, batch_size, lambda b: progress.advance(b * _FORWARD_SHARE)) for view in views]
            )
        if self.attack == "shokri":
            return {**recorded, "shadow_logits": logits[0].half() if _fits_half(logits[0]) else logits[0]}
        scores = torch.from_numpy(self._signal(logits.numpy(), queries.y)).float()
        return {**recorded, "shadow_scores": scores.permute(1, 2, 0).contiguous()}

    def shadow_config(self, seed: int) -> ShadowConfig:
        return ShadowConfig(
            models=self.shadows,
            epochs=self.epochs,
            batch_size=self.shadow_batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            seed=seed % 2**31,
        )

    def label_only(
        self, target: Target, queries: Queries, seed: int, batch_size: int, progress: Progress | None = None
    ) -> Tensor:
        """Scores ``(n,)`` of the label-only attack, which asks the model again and again."""
        attack = LabelOnly(augmentations=Augmentations(self.flip, self.shifts))
        scores = []
        if progress is not None:
            progress.start("label-only queries", len(queries.y))

        @torch.no_grad()
        def predict(x: Tensor) -> Tensor:
            return target.module(x.to(target.device)).argmax(1).cpu()

        y = torch.from_numpy(queries.y)
        for start in range(0, len(y), batch_size):
            part = slice(start, start + batch_size)
            found = attack(predict, queries.x[part], y[part], bounds=target.bounds, seed=seed, ids=queries.ids[part])
            scores.append(torch.from_numpy(found))
            if progress is not None:
                progress.advance(len(found))
        return torch.cat(scores)

    def scores(self, tensors: Tensors, queries: Queries, seed: int) -> NDArray[np.float64]:
        """Membership scores ``(n,)`` from the target's logits and what was gathered."""
        logits, y = tensors["target_logits"].numpy(), queries.y
        match self.attack:
            case "lira" | "rmia":
                own = np.ascontiguousarray(self._signal(logits, y).T)
                references = References(tensors["shadow_scores"].double().numpy(), tensors["shadow_member"].numpy())
                if self.attack == "lira":
                    return LiRA(self.online, self.variance)(own, references)
                return RMIA(self.online)(own, references, queries.known)
            case "shokri":
                shadows, member = tensors["shadow_logits"].float().numpy(), tensors["shadow_member"].numpy()
                return ShokriAttack(seed=seed % 2**31)(logits[0], shadows, member, y)
            case "quantile":
                regression = QuantileRegression(seed=seed % 2**31)
                return regression(scaled_confidence(logits[0], y), queries.x, y, queries.known)
            case "label_only":
                return tensors["label_only_scores"].numpy()
            case _:
                return membership_scores(logits[0], y, self.attack)

    def _signal(self, logits: NDArray[np.floating], y: NDArray[np.int64]) -> NDArray[np.float64]:
        return scaled_confidence(logits, y) if self.attack == "lira" else label_log_probability(logits, y)

    def not_covered(self) -> Iterator[str]:
        if not self.with_shadows:
            yield "Attacks with shadow or reference models (LiRA, RMIA), which find many times more at low false alarm."
        elif self.attack != "shokri" and not self.flip and not self.shifts:
            yield "Queries with mirrored or shifted inputs, which help where the model was trained with them."
        if self.attack in SCORE_KINDS or self.attack == "quantile":
            yield "What the model's inside gives away: this attack sees its outputs only."

    def caveats(self, target: Target, n_pool: int, n_train: int) -> Iterator[str]:
        """What weakens an attack with shadow models, given the records in the pool and in the training set."""
        if not self.with_shadows:
            return
        trained_on = n_pool // 2
        if trained_on < 0.75 * n_train:
            yield (
                f"The shadow models were trained on {trained_on} records, the model on {n_train}: with fewer they "
                "overfit more than it does, and the attack is weaker than it could be. Raise limit, or give more "
                "non-members."
            )
        yield caveat(self.recipe(target), target.recipe) + (
            " If the model was trained otherwise than by the recipe of this check's options (from other weights, with "
            "augmentation, for longer), the attack is weaker than one that knows how."
        )


_FORWARD_SHARE = 0.33
"""Cost of a forward pass in units of a training step, for the forecast."""


def _fits_half(logits: Tensor) -> bool:
    return bool(logits.abs().max() < 6e4)
