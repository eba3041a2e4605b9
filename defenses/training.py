"""The training loop behind fine-tuning and every defense that trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..attacks.errors import AuditError, UnsupportedError
from .ema import MovingAverage
from .objectives import CrossEntropy, Moment, Objective
from .optimizers import OptimizerName, ScheduleName, learning_rate_factor, make_optimizer, set_learning_rate
from .scope import Scope, training_scope


class Inputs(Protocol):
    """Training inputs by position, ``inputs[index] -> (b, ...)``: a tensor, or something that reads from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train.

    Args:
        epochs: passes over the data.
        batch_size: samples per step.
        optimizer: sgd, adam, adamw, rmsprop or adagrad.
        lr: highest learning rate.
        momentum: for sgd and rmsprop; nesterov: for sgd.
        weight_decay: spares biases and norm layers.
        schedule: constant, linear, cosine, exponential or step; warmup: share of the steps over which lr rises.
        clip_norm: longest gradient (l2 over all parameters), or None.
        ema: decay of an exponential moving average of the weights, which then is the result; None for none.
        patience: epochs without a better validation score after which training stops; needs ``validate``.
        scope: what is trained: all, head, or the number of last blocks.
        seed: of batch order, random starts, dropout.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: OptimizerName = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: ScheduleName = "cosine"
    warmup: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    patience: int | None = None
    scope: Scope = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UnsupportedError(f"epochs is {self.epochs} and batch_size {self.batch_size}: both must be at least 1")
        if not self.lr > 0:
            raise UnsupportedError(f"lr is {self.lr}: it must be above 0")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass gave: mean loss, share of its training inputs classified correctly, last learning rate,
    validation score (None without validation), seconds."""

    loss: float
    accuracy: float
    lr: float
    validation: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class History:
    """All epochs of a training, and which one (0-based) the final weights are from."""

    epochs: tuple[Epoch, ...]
    kept: int

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)


class DivergedError(AuditError):
    """Loss or weights became infinite or NaN; the module holds the last good weights, ``history`` the good epochs."""

    def __init__(self, history: History, lr: float) -> None:
        done = len(history.epochs)
        super().__init__(
            f"training diverged in epoch {done + 1} (loss or weights not finite, learning rate {lr:g}); the weights "
            f"from {f'the end of epoch {done}' if done else 'before the training'} were kept. "
            "Lower lr, or set clip_norm."
        )
        self.history = history


def fit(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    config: TrainingConfig,
    objective: Objective | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    on_samples: Callable[[int], None] | None = None,
) -> History:
    """Trains ``module`` in place; its train/eval mode and gradient flags are left as found.

    The result depends on weights, data, config and thread count only: the global random state is neither read nor
    changed. With ``validate`` the weights of the best epoch are kept, otherwise those of the last.

    Args:
        x: inputs ``(n, ...)`` as the module takes them.
        y: labels int64 ``(n,)``.
        objective: loss of a batch; cross-entropy when left out.
        validate: score of the module (in eval mode) after each epoch, higher is better.
        on_samples: called after each step with the number of samples it used.

    Raises:
        DivergedError: when loss or weights stop being finite.
        UnsupportedError: for empty data, unequal lengths, or ``patience`` without ``validate``.
    """
    if len(x) == 0 or len(x) != len(y):
        raise UnsupportedError(f"{len(x)} inputs and {len(y)} labels: both must be the same number above 0")
    if config.patience is not None and validate is None:
        raise UnsupportedError("patience needs validate: there is no score to wait for")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.enable_grad(), training_scope(module, config.scope) as parameters, torch.random.fork_rng(devices):
        run = _Run(module, parameters, x, y, config, objective or CrossEntropy(), on_samples)
        return run.epochs(validate)


class _Run:
    """The state of one training."""

    def __init__(
        self,
        module: nn.Module,
        parameters: list[nn.Parameter],
        x: Inputs,
        y: Tensor,
        config: TrainingConfig,
        objective: Objective,
        on_samples: Callable[[int], None] | None,
    ) -> None:
        self.module, self.parameters, self.x, self.y = module, parameters, x, y
        self.config, self.objective, self.on_samples = config, objective, on_samples
        self.device = parameters[0].device
        self.optimizer: Optimizer = make_optimizer(
            config.optimizer,
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        self.average = MovingAverage(parameters, config.ema) if config.ema is not None else None
        self.steps_per_epoch = math.ceil(len(y) / config.batch_size)

    def epochs(self, validate: Callable[[nn.Module], float] | None) -> History:
        done: list[Epoch] = []
        good, kept, best = self._weights(), 0, -math.inf
        for number in range(self.config.epochs):
            started = time.perf_counter()
            loss, accuracy, lr = self._epoch(number)
            if not (math.isfinite(loss) and self._finite()):
                self.module.load_state_dict(good)
                raise DivergedError(History(tuple(done), max(0, kept)), lr)
            score = self._score(validate)
            done.append(Epoch(loss, accuracy, lr, score, time.perf_counter() - started))
            if score is None or score > best:
                good, kept, best = self._weights(), number, score if score is not None else best
            elif self.config.patience is not None and number - kept >= self.config.patience:
                break
        self.module.load_state_dict(good)
        return History(tuple(done), kept)

    def _epoch(self, number: int) -> tuple[float, float, float]:
        """Mean loss, accuracy and last learning rate; every random number of the epoch follows from its own seed."""
        generator = torch.Generator().manual_seed(_epoch_seed(self.config.seed, number))
        torch.manual_seed(generator.initial_seed())
        order = torch.randperm(len(self.y), generator=generator)
        totals = torch.zeros(2, device=self.device, dtype=torch.float64)
        lr = self.config.lr
        for place, index in enumerate(order.split(self.config.batch_size)):
            step = number * self.steps_per_epoch + place
            lr = self._step(step, index, generator, totals)
            if self.on_samples is not None:
                self.on_samples(len(index))
        loss, accuracy = (totals / len(self.y)).tolist()
        return loss, accuracy, lr

    def _step(self, step: int, index: Tensor, generator: torch.Generator, totals: Tensor) -> float:
        total = self.config.epochs * self.steps_per_epoch
        lr = self.config.lr * learning_rate_factor(self.config.schedule, step, total, self.config.warmup)
        set_learning_rate(self.optimizer, lr)
        x, y = self.x[index].to(self.device), self.y[index].to(self.device)
        loss, correct = self.objective(self.module, x, y, Moment(step / total, generator))
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        totals += torch.stack([loss.detach() * len(index), correct]).to(totals)
        return lr

    def _finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters)

    def _weights(self) -> dict[str, Tensor]:
        if self.average is None:
            return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        with self.average.applied():
            return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def _score(self, validate: Callable[[nn.Module], float] | None) -> float | None:
        if validate is None:
            return None
        modes = {layer: layer.training for layer in self.module.modules()}
        self.module.eval()
        try:
            if self.average is None:
                return float(validate(self.module))
            with self.average.applied():
                return float(validate(self.module))
        finally:
            for layer, mode in modes.items():
                layer.training = mode


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63
