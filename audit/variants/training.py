"""What the variants that train have in common: options, data read batch by batch, cost, history, training curve."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...defenses.checkpoint import Checkpoint
from ...defenses.lora import LoRA
from ...defenses.objectives import Objective, balanced_weights
from ...defenses.optimizers import OptimizerName, ScheduleName
from ...defenses.precision import PrecisionName
from ...defenses.scope import HeadScheme, Scope, reset_head
from ...defenses.training import Guard, History, TrainingConfig, Validate, fit
from ...defenses.validation import Accuracy, hold_out
from ...reports.record import Chart, Line, Metric
from ..cache import stable_hash
from ..checks.base import Context
from ..errors import UnsupportedError
from ..recipe import BASE, Recipe
from ..samples import Inputs, Samples
from ..target import Encode, Target
from .augment import AugmentOptions
from .base import Built, Variant

TrainedPart = Literal["all", "head", "lora"] | int

VALIDATED = 1000
"""Most held-out samples that are looked at after each epoch."""


class TrainingVariant(Variant):
    """Options of every variant that trains the target further with gradients."""

    train: str = Field(description="Training data, in any form that `data.source` takes; path relative to the spec.")
    epochs: int = Field(default=10, ge=1, description="Passes over the training data.")
    batch_size: int = Field(default=64, ge=1, description="Samples per step; in parts when memory is short.")
    optimizer: OptimizerName = Field(default="adamw", description="sgd, adam, adamw, rmsprop or adagrad.")
    lr: float = Field(default=1e-3, gt=0, description="Highest learning rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of sgd and rmsprop.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum (sgd).")
    schedule: ScheduleName = Field(default="cosine", description="constant, linear, cosine, exponential or step.")
    warmup: float = Field(default=0.0, ge=0, le=1, description="Share of the steps over which the rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, description="Of matrices and kernels; biases and norms are spared.")
    clip_norm: float | None = Field(default=None, gt=0, description="Longest gradient, l2; none if left out.")
    ema: float | None = Field(default=None, ge=0, lt=1, description="Decay of the average of weights that is kept.")
    precision: PrecisionName = Field(default="float32", description="float32, or passes in bfloat16 or float16.")
    class_weights: Literal["none", "balanced"] | tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default="none", description="none, balanced (each class weighs the same), or one weight per class."
    )
    scope: TrainedPart = Field(
        default="all", description="What is trained: all, head, the number of last blocks, or lora (adapters and head)."
    )
    lora_rank: int = Field(default=8, ge=1, description="Rank of the adapters (scope lora).")
    lora_alpha: float = Field(default=16.0, gt=0, description="The adapters count alpha / rank times (scope lora).")
    new_head: Literal["keep"] | HeadScheme = Field(
        default="keep",
        description="keep the last layer's weights, or draw them afresh: default (the layer's own way), zeros, normal, "
        "xavier_uniform, kaiming_normal or orthogonal.",
    )
    augment: AugmentOptions = Field(
        default=AugmentOptions(),
        description="Random changes of the inputs by their strength: flip, crop, rotation, translation, scale, colour, "
        "randaugment (images), noise (images, tables), swap (tables).",
    )
    validation: float = Field(
        default=0.0, ge=0, le=0.5, description="Share of the training data held out; the best epoch on it is kept."
    )
    patience: int | None = Field(
        default=None, ge=1, description="Epochs without a better score on held-out data after which training stops."
    )

    def files(self) -> tuple[str, ...]:
        return (self.train,)

    def recipe(self) -> Recipe | None:
        return Recipe(BASE, self.new_head != "keep", chosen_scope(self.scope, self.lora_rank, self.lora_alpha))

    def config(self, context: Context) -> TrainingConfig:
        """The loop's configuration."""
        memory = context.batch_size
        return TrainingConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            physical_batch=memory if memory is not None and memory < self.batch_size else None,
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup=self.warmup,
            clip_norm=self.clip_norm,
            ema=self.ema,
            precision=self.precision,
            patience=self.patience,
            scope=chosen_scope(self.scope, self.lora_rank, self.lora_alpha, context.seed),
            seed=context.seed,
        )

    def lesson(self, target: Target, context: Context) -> Lesson:
        """The training data, with what is held out of them for validation."""
        if self.patience is not None and not self.validation:
            raise UnsupportedError(
                f"{self.id or self.name}: patience needs validation, a share of the data to hold out"
            )
        x, y = training_data(target, context, self.train)
        held = None
        if self.validation:
            rows, held_rows = hold_out(y, self.validation, context.seed)
            held_rows = held_rows[torch.randperm(len(held_rows), generator=torch.Generator().manual_seed(context.seed))]
            held_rows = held_rows[:VALIDATED]
            held = (Rows(x, held_rows), y[held_rows])
            x, y = Rows(x, rows), y[rows]
        return Lesson(x, y, held, self._class_weights(y, len(target.classes)))

    def teach(
        self,
        target: Target,
        context: Context,
        lesson: Lesson,
        objective: Objective,
        *,
        validate: Validate | None = None,
        guard: Guard | None = None,
        module: nn.Module | None = None,
    ) -> Taught:
        """Trains ``module`` (a copy of the target's when left out) and gives it back in eval mode.

        A run that is killed goes on from its checkpoint in the output folder. ``validate`` replaces clean accuracy on
        the held-out data.
        """
        module = copied(target) if module is None else module
        if self.new_head != "keep":
            reset_head(module, context.seed, self.new_head)
        if validate is None and lesson.held is not None:
            validate = Accuracy(*lesson.held)
        context.progress.start(self.title.lower(), self.epochs * len(lesson.y))
        history = fit(
            module,
            lesson.x,
            lesson.y,
            config=self.config(context),
            objective=objective,
            augment=self.augment.build(target),
            validate=validate,
            guard=guard,
            on_samples=context.progress.advance,
            checkpoint=Checkpoint(context.scratch("training.safetensors"), key=self._key(target, context)),
        )
        return Taught(module.eval(), history)

    def _key(self, target: Target, context: Context) -> str:
        """What the weights depend on besides what the loop sees."""
        return stable_hash([target.sha256, context.samples(self.train).sha256, self.model_dump(mode="json")])

    def _class_weights(self, y: Tensor, classes: int) -> tuple[float, ...] | None:
        if self.class_weights == "none":
            return None
        if self.class_weights == "balanced":
            return balanced_weights(y, classes)
        if len(self.class_weights) != classes:
            raise UnsupportedError(f"class_weights has {len(self.class_weights)} values, the model {classes} classes")
        return self.class_weights


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is trained on: inputs, labels int64 ``(n,)``, held-out inputs and labels (or None), class weights."""

    x: EncodedInputs | Rows
    y: Tensor
    held: tuple[Rows, Tensor] | None
    class_weights: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Taught:
    """A trained module in eval mode, and how it went."""

    module: nn.Module
    history: History

    def built(self, summary: str, on: str, warnings: Iterable[str] = ()) -> Built:
        """The variant's record; ``on`` says on which inputs loss and accuracy of the curve are."""
        history = self.history
        stopped = f"Training {history.stopped}." if history.stopped else ""
        kept = history.kept + 1
        earlier = f"Weights of epoch {kept} were kept." if 0 < kept < len(history.epochs) else ""
        return Built(
            module=self.module,
            summary=" ".join(text for text in (summary, stopped, earlier) if text),
            metrics=cost_metrics(self.module, history.seconds, len(history.epochs)),
            figures=(history_chart(history, on),),
            warnings=(*warnings, *([stopped] if "catastrophic" in stopped else [])),
            parameters={"history": history_record(history), "kept_epoch": kept},
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


@dataclass(frozen=True, slots=True)
class Rows:
    """Some of the inputs, by their positions."""

    inputs: EncodedInputs
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return self.inputs[self.rows[index]]


def copied(target: Target) -> nn.Module:
    """The target's module, to be trained without touching the target."""
    return copy.deepcopy(target.module)


def needs_numbers(target: Target, what: str) -> None:
    """Refuses what changes inputs by small amounts where inputs are texts.

    Raises:
        UnsupportedError: naming ``what``.
    """
    if target.modality == "text":
        raise UnsupportedError(
            f"{what} changes inputs by small amounts, which token numbers do not allow: leave it out"
        )


def training_data(target: Target, context: Context, source: str) -> tuple[EncodedInputs, Tensor]:
    """Inputs and labels int64 ``(n,)`` of a training set."""
    samples: Samples = context.samples(source)
    return EncodedInputs(samples.inputs, target.encode), torch.from_numpy(samples.labels)


def chosen_scope(scope: TrainedPart, rank: int, alpha: float, seed: int = 0) -> Scope:
    """What is trained, from a spec's options; ``seed`` is that of the adapters' first weights."""
    return LoRA(rank, alpha, seed=seed) if scope == "lora" else scope


def scope_text(scope: Scope) -> str:
    """What is trained, in words."""
    if isinstance(scope, LoRA):
        return f"LoRA adapters of rank {scope.rank} and the head"
    return {"all": "all weights", "head": "the head"}.get(str(scope), f"the last {scope} blocks")


def reset_parameters(module: nn.Module, seed: int) -> None:
    """Draws all weights afresh under ``seed``, each layer by its own scheme; the global generator is untouched.

    Raises:
        UnsupportedError: for a layer with parameters that cannot reset itself.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in module.named_modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise UnsupportedError(
                    f"{name or 'the model'} ({type(layer).__name__}) cannot draw fresh weights: it has no "
                    "reset_parameters(). Name public weights in `start`"
                )


def trained_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cost_metrics(module: nn.Module, seconds: float, epochs: int) -> tuple[Metric, ...]:
    """Size of the variant and what its training took."""
    return (
        Metric(name="parameters", value=trained_parameters(module), label="Parameters"),
        Metric(name="epochs", value=epochs, label="Epochs trained"),
        Metric(name="training_seconds", value=seconds, unit="s", higher_is_better=False, label="Training time"),
    )


def history_record(history: History) -> list[dict[str, Any]]:
    """What the record keeps of each epoch: no times, so that equal runs give equal records."""
    rows = []
    for number, epoch in enumerate(history.epochs, start=1):
        row = {"epoch": number, "loss": round(epoch.loss, 6), "accuracy": round(epoch.accuracy, 6), "lr": epoch.lr}
        rows.append(row | ({} if epoch.validation is None else {"validation": round(epoch.validation, 6)}))
    return rows


def history_chart(history: History, on: str) -> Chart:
    """Loss and accuracy by epoch, and the validation score where there is one; ``on`` says on which inputs."""
    scores = [epoch.validation for epoch in history.epochs if epoch.validation is not None]
    losses, accuracies = [epoch.loss for epoch in history.epochs], [epoch.accuracy for epoch in history.epochs]
    return curve_chart(losses, accuracies, on, scores)


def curve_chart(losses: Sequence[float], accuracies: Iterable[float], on: str, scores: Sequence[float] = ()) -> Chart:
    x = tuple(float(i) for i in range(1, len(losses) + 1))
    held = (Line(name="held-out accuracy", x=x, y=tuple(scores)),) if scores else ()
    lines = (
        Line(name="accuracy", x=x, y=tuple(accuracies)),
        *held,
        Line(name="loss", x=x, y=tuple(losses), dashed=True),
    )
    return Chart(
        id="training",
        title="Training curve",
        caption=f"Mean loss and accuracy of each epoch {on}.",
        x_label="epoch",
        y_label="accuracy, loss",
        lines=lines,
    )
