"""How a private training is made: options of the variant that is trained and of the check that doubts its epsilon."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from ...defenses.scope import Scope, reset_head
from ...privacy.clipping import ClippingName
from ...privacy.config import DPConfig, Schedule
from ..checks.base import Context
from ..loading.model import inner
from ..loading.weights import load_weights, read_weights
from ..recipe import RANDOM
from .augment import AugmentOptions
from .training import TrainedPart, chosen_scope, reset_parameters

PRESENT = "target"


class PrivateTraining(BaseModel):
    """Everything that shapes a training by DP-SGD, but for the budget and the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: str = Field(
        default=RANDOM,
        description="Weights to start from: `random`; a file that saw none of these records (public pre-training); "
        "or `target`, which has a guarantee only if the target never saw them.",
    )
    new_head: bool = Field(
        default=False, description="Draw the last layer's weights afresh, as for new classes; start not random."
    )
    noise_multiplier: float | None = Field(default=None, ge=0, description="Noise in units of max_grad_norm.")
    delta: float | None = Field(default=None, gt=0, lt=1, description="n ** -1.1 when left out.")
    epochs: int = Field(default=15, ge=1, description="Expected passes over the training data.")
    batch_size: int = Field(default=512, ge=1, description="Expected number of records per step.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="l2 norm to which each gradient is clipped.")
    clipping: ClippingName = Field(
        default="flat",
        description="flat; per_layer (each layer has its share of the norm); automatic (every gradient is scaled "
        "to the norm); or adaptive (the norm follows a quantile of the gradients', privately).",
    )
    quantile: float = Field(default=0.5, gt=0, lt=1, description="Which quantile adaptive clipping follows.")
    lr: float = Field(default=2.0, gt=0, description="Highest learning rate.")
    schedule: Schedule = Field(default="constant", description="constant, or cosine: falling to 0.")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="sgd or adam.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Of sgd.")
    scope: TrainedPart = Field(
        default="all", description="What is trained: all, head, the number of last blocks, or lora (adapters and head)."
    )
    lora_rank: int = Field(default=8, ge=1, description="Rank of the adapters (scope lora).")
    lora_alpha: float = Field(default=16.0, gt=0, description="The adapters count alpha / rank times (scope lora).")
    augment: AugmentOptions = Field(default=AugmentOptions(), description="Random changes of each record by itself.")
    views: int = Field(
        default=1, ge=1, description="Augmented copies of a record in each step, averaged before clipping; no privacy."
    )
    ema: float | None = Field(default=None, ge=0, lt=1, description="Decay of the average of weights that is kept.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16 for the passes; norms, sums, noise and weights stay float32."
    )
    secure_noise: bool = Field(default=False, description="Noise that withstands floating-point attacks; slower.")

    @model_validator(mode="after")
    def _each_record_by_itself(self) -> Self:
        if self.augment.swap:
            raise ValueError("augment.swap takes values from other records, so no gradient is one record's alone")
        if self.views > 1 and self.augment == AugmentOptions():
            raise ValueError("views above 1 needs augment: equal copies of a record add nothing")
        if self.secure_noise and self.clipping == "adaptive":
            raise ValueError("secure_noise does not cover the count of adaptive clipping; use clipping: flat")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.new_head and self.start == RANDOM:
            raise ValueError("new_head: random weights have a new head in any case; name others in `start`")
        return self

    @property
    def start_files(self) -> tuple[str, ...]:
        """The file of weights to start from, where it is one."""
        return () if self.start in (RANDOM, PRESENT) else (self.start,)

    def begin(self, module: nn.Module, context: Context) -> None:
        """Gives ``module``, a copy of the target's, the weights that training starts from.

        Raises:
            ModelError: when those of the file do not fit.
            UnsupportedError: when a layer cannot draw fresh ones.
        """
        if self.start == RANDOM:
            reset_parameters(module, context.seed)
        for source in self.start_files:
            load_weights(inner(module), read_weights(context.path(source)), source)
        if self.new_head:
            reset_head(module, context.seed)

    def trained_part(self, seed: int) -> Scope:
        """What takes gradients; ``seed`` is that of LoRA's first weights."""
        return chosen_scope(self.scope, self.lora_rank, self.lora_alpha, seed)

    def steps(
        self,
        *,
        epsilon: float | None,
        batch_size: int,
        seed: int | None,
        delta: float | None = None,
        physical_batch: int | None = None,
    ) -> DPConfig:
        """The trainer's configuration: these options at a budget, an expected batch and a seed (None: a secret one)."""
        return DPConfig(
            epsilon=epsilon,
            noise_multiplier=self.noise_multiplier,
            delta=self.delta if delta is None else delta,
            epochs=self.epochs,
            batch_size=batch_size,
            max_grad_norm=self.max_grad_norm,
            clipping=self.clipping,
            quantile=self.quantile,
            lr=self.lr,
            optimizer=self.optimizer,
            momentum=self.momentum,
            schedule=self.schedule,
            views=self.views,
            ema=self.ema,
            precision=self.precision,
            seed=seed,
            secure_noise=self.secure_noise,
            physical_batch=physical_batch,
        )
