"""How to train."""

from __future__ import annotations

from dataclasses import dataclass

from ..attacks.errors import UnsupportedError
from .optimizers import OptimizerName, ScheduleName
from .precision import PrecisionName
from .scope import Scope


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train.

    Args:
        epochs: passes over the data.
        batch_size: samples per step.
        physical_batch: most samples passed through at once, when memory is short; gradients of the parts of a batch
            are accumulated, which changes the result by rounding only (and by the batch statistics of BatchNorm).
        optimizer: sgd, adam, adamw, rmsprop or adagrad.
        lr: highest learning rate.
        momentum: for sgd and rmsprop; nesterov: for sgd.
        weight_decay: spares biases and norm layers.
        schedule: constant, linear, cosine, exponential or step; warmup: share of the steps over which lr rises.
        clip_norm: longest gradient (l2 over all parameters), or None.
        ema: decay of an exponential moving average of the weights, which then is the result; None for none.
        precision: float32, or the passes in bfloat16 or float16 (with loss scaling) under autocast.
        patience: epochs without a better validation score after which training stops; needs ``validate``.
        scope: what is trained: all, head, the number of last blocks, or a LoRA.
        seed: of batch order, random starts, dropout.
    """

    epochs: int = 10
    batch_size: int = 64
    physical_batch: int | None = None
    optimizer: OptimizerName = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: ScheduleName = "cosine"
    warmup: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    precision: PrecisionName = "float32"
    patience: int | None = None
    scope: Scope = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UnsupportedError(f"epochs is {self.epochs} and batch_size {self.batch_size}: both must be at least 1")
        if self.physical_batch is not None and self.physical_batch < 1:
            raise UnsupportedError(f"physical_batch is {self.physical_batch}: it must be at least 1")
        if not self.lr > 0:
            raise UnsupportedError(f"lr is {self.lr}: it must be above 0")
        if self.nesterov and self.momentum <= 0:
            raise UnsupportedError("nesterov needs a momentum above 0")
