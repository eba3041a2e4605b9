"""What the variants that train have in common: options, data read batch by batch, cost, and the training curve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...defenses.optimizers import OptimizerName, ScheduleName
from ...defenses.scope import Scope
from ...defenses.training import History, TrainingConfig
from ...reports.record import Chart, Line, Metric
from ..checks.base import Context
from ..samples import Inputs, Samples
from ..target import Encode, Target
from .base import Variant

TrainedPart = Literal["all", "head"] | int


class TrainingVariant(Variant):
    """Options of every variant that trains the target further with gradients."""

    train: str = Field(description="Training data, in any form that `data.source` takes; path relative to the spec.")
    epochs: int = Field(default=10, ge=1, description="Passes over the training data.")
    batch_size: int = Field(default=64, ge=1, description="Samples per step.")
    optimizer: OptimizerName = Field(default="adamw", description="sgd, adam, adamw, rmsprop or adagrad.")
    lr: float = Field(default=1e-3, gt=0, description="Highest learning rate.")
    schedule: ScheduleName = Field(default="cosine", description="constant, linear, cosine, exponential or step.")
    warmup: float = Field(default=0.0, ge=0, le=1, description="Share of the steps over which the rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, description="Of matrices and kernels; biases and norms are spared.")
    clip_norm: float | None = Field(default=None, gt=0, description="Longest gradient, l2; none if left out.")
    ema: float | None = Field(default=None, ge=0, lt=1, description="Decay of the average of weights that is kept.")
    scope: TrainedPart = Field(default="all", description="What is trained: all, head, or the number of last blocks.")

    def files(self) -> tuple[str, ...]:
        return (self.train,)

    def config(self, seed: int) -> TrainingConfig:
        """The loop's configuration."""
        return TrainingConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup=self.warmup,
            clip_norm=self.clip_norm,
            ema=self.ema,
            scope=checked_scope(self.scope),
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """Training inputs as the module takes them, encoded batch by batch, so that the data may exceed the memory."""

    inputs: Inputs
    encode: Encode

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return self.encode(self.inputs[index.numpy()])


def training_data(target: Target, context: Context, source: str) -> tuple[EncodedInputs, Tensor]:
    """Inputs and labels int64 ``(n,)`` of a training set."""
    samples: Samples = context.samples(source)
    return EncodedInputs(samples.inputs, target.encode), torch.from_numpy(samples.labels)


def checked_scope(scope: TrainedPart) -> Scope:
    return "all" if scope == "all" else "head" if scope == "head" else int(scope)


def trained_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cost_metrics(module: nn.Module, seconds: float, epochs: int) -> tuple[Metric, ...]:
    """Size of the variant and what its training took."""
    return (
        Metric(name="parameters", value=trained_parameters(module), label="Parameters"),
        Metric(name="epochs", value=epochs, label="Epochs trained"),
        Metric(name="training_seconds", value=seconds, unit="s", higher_is_better=False, label="Training time"),
    )


def history_chart(history: History, on: str) -> Chart:
    """Loss and accuracy by epoch; ``on`` says on which inputs."""
    return curve_chart([epoch.loss for epoch in history.epochs], [epoch.accuracy for epoch in history.epochs], on)


def curve_chart(losses: Sequence[float], accuracies: Iterable[float], on: str) -> Chart:
    x = tuple(float(i) for i in range(1, len(losses) + 1))
    lines = (Line(name="accuracy", x=x, y=tuple(accuracies)), Line(name="loss", x=x, y=tuple(losses), dashed=True))
    return Chart(
        id="training",
        title="Training curve",
        caption=f"Mean loss and accuracy of each epoch {on}.",
        x_label="epoch",
        y_label="accuracy, loss",
        lines=lines,
    )
