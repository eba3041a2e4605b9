"""How a private training is made: options of the variant that is trained and of the check that doubts its epsilon."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...defenses.lora import LoRA
from ...defenses.scope import Scope
from ...privacy.clipping import ClippingName
from ...privacy.config import DPConfig, Schedule
from .augment import AugmentOptions
from .training import TrainedPart, checked_scope


class PrivateTraining(BaseModel):
    """Everything that shapes the steps of DP-SGD, but for the budget, the data and the weights to start from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    scope: TrainedPart | Literal["lora"] = Field(
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

    def trained_part(self, seed: int) -> Scope:
        """What takes gradients; ``seed`` is that of LoRA's first weights."""
        if self.scope == "lora":
            return LoRA(self.lora_rank, self.lora_alpha, seed=seed)
        return checked_scope(self.scope)

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
