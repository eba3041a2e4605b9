"""The training loop behind fine-tuning and every defense that trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..attacks.errors import UnsupportedError
from .augmentation import Augment
from .checkpoint import Checkpoint, Saver, State, fingerprint, write_tensors
from .config import TrainingConfig
from .ema import MovingAverage
from .history import DivergedError, Epoch, History
from .objectives import CrossEntropy, Moment, Objective, Stateful
from .optimizers import (
    learning_rate_factor,
    make_optimizer,
    optimizer_state,
    restore_optimizer,
    set_learning_rate,
)
from .precision import Precision
from .random_state import random_state, restore_random_state
from .scope import training_scope

__all__ = ["DivergedError", "Epoch", "Guard", "History", "Inputs", "TrainingConfig", "Validate", "fit"]

T = TypeVar("T")

Validate = Callable[[nn.Module], float]
"""Score of a module in eval mode, higher is better; see :mod:`~auditorch.defenses.validation`."""


class Inputs(Protocol):
    """Training inputs by position, ``inputs[index] -> (b, ...)``: a tensor, or something that reads from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class Guard(Protocol):
    """Looks at the module (in eval mode) after each epoch: why the training must stop there, or an empty string.

    The epoch's weights are then given up for the last good ones. ``progress`` is the share of all steps done.
    """

    def __call__(self, module: nn.Module, progress: float) -> str: ...


def fit(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    config: TrainingConfig,
    objective: Objective | None = None,
    augment: Augment | None = None,
    validate: Validate | None = None,
    guard: Guard | None = None,
    on_samples: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Trains ``module`` in place; its train/eval mode and gradient flags are left as found.

    The result depends on weights, data, config and thread count only: the global random state is neither read nor
    changed. With ``validate`` the weights of the best epoch are kept, otherwise those of the last. Called again with
    the same arguments and the ``checkpoint`` of a training that was killed, it goes on where that was saved, and ends
    with the same weights, bit for bit.

    Args:
        x: inputs ``(n, ...)`` as the module takes them.
        y: labels int64 ``(n,)``.
        objective: loss of a batch; cross-entropy when left out.
        augment: random change of each batch of inputs, before the objective sees it.
        validate: score of the module (in eval mode) after each epoch, higher is better.
        guard: ends the training before the epoch that went wrong.
        on_samples: called after each step with the number of samples it used.
        checkpoint: where to save the state, and how often.

    Raises:
        DivergedError: when loss or weights stop being finite.
        UnsupportedError: for empty data, unequal lengths, or ``patience`` without ``validate``.
    """
    if len(x) == 0 or len(x) != len(y):
        raise UnsupportedError(f"{len(x)} inputs and {len(y)} labels: both must be the same number above 0")
    if config.patience is not None and validate is None:
        raise UnsupportedError("patience needs validate: there is no score to wait for")
    identity = _identity(module, x, y, config, objective, augment, checkpoint.key) if checkpoint else ""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.enable_grad(), training_scope(module, config.scope) as parameters, torch.random.fork_rng(devices):
        run = _Run(module, parameters, x, y, config, objective or CrossEntropy(), augment, on_samples)
        run.saver = Saver(checkpoint, identity) if checkpoint else None
        return run.epochs(validate, guard)


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
        augment: Augment | None,
        on_samples: Callable[[int], None] | None,
    ) -> None:
        self.module, self.parameters, self.x, self.y = module, parameters, x, y
        self.config, self.objective, self.augment, self.on_samples = config, objective, augment, on_samples
        self.device = parameters[0].device
        self.optimizer: Optimizer = make_optimizer(
            config.optimizer,
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            scaled=config.precision == "float16",
        )
        self.precision = Precision(config.precision, self.device)
        self.average = MovingAverage(parameters, config.ema) if config.ema is not None else None
        self.replays: int = getattr(objective, "replays", 1)
        if self.replays > 1 and (config.physical_batch or config.batch_size) < config.batch_size:
            raise UnsupportedError(
                "free adversarial training passes each batch whole: set batch_size to physical_batch"
            )
        self.batches = math.ceil(len(y) / config.batch_size)
        self.saver: Saver | None = None
        self.done: list[Epoch] = []
        self.good, self.kept, self.best = self._weights(), -1, -math.inf
        self.epoch, self.place, self.elapsed, self.lr = 0, 0, 0.0, config.lr
        self.totals = torch.zeros(2, device=self.device, dtype=torch.float64)
        self.generator = torch.Generator()

    # Epochs

    def epochs(self, validate: Validate | None, guard: Guard | None) -> History:
        saved = self.saver.read() if self.saver else None
        if saved is not None:
            self._restore(saved)
        stopped = self._stopped()
        while not stopped and self.epoch < self.config.epochs:
            stopped = self._one_epoch(validate, guard)
            self.epoch, self.place = self.epoch + 1, 0
            if self.saver and not stopped and self.saver.due():
                self._save()
        self.module.load_state_dict(self.good)
        if self.saver:
            self.saver.remove()
        return History(tuple(self.done), self.kept, stopped)

    def _one_epoch(self, validate: Validate | None, guard: Guard | None) -> str:
        """Why to stop after this epoch, or an empty string."""
        started = time.perf_counter() - self.elapsed
        loss, accuracy = self._pass(started)
        if not (math.isfinite(loss) and self._finite()):
            self._give_up()
        progress = (self.epoch + 1) / self.config.epochs
        reason = self._evaluated(lambda module: guard(module, progress)) if guard else ""
        score = self._score(validate)
        self.done.append(Epoch(loss, accuracy, self.lr, score, time.perf_counter() - started))
        self.elapsed = 0.0
        if reason:
            return f"stopped in epoch {self.epoch + 1}: {reason}"
        if score is None or score > self.best:
            self.good, self.kept, self.best = self._weights(), self.epoch, self.best if score is None else score
        return self._stopped()

    def _stopped(self) -> str:
        patience = self.config.patience
        if patience is None or len(self.done) - 1 - self.kept < patience or len(self.done) == self.config.epochs:
            return ""
        return f"stopped after epoch {len(self.done)}: no better validation score for {patience} epochs"

    def _give_up(self) -> None:
        self.module.load_state_dict(self.good)
        file = None
        if self.saver:
            file = self.saver.checkpoint.last_good
            write_tensors(file, self.good)
            self.saver.remove()
        raise DivergedError(History(tuple(self.done), self.kept), self.lr, file)

    # Steps

    def _pass(self, started: float) -> tuple[float, float]:
        """Mean loss and accuracy of an epoch; every random number of it follows from the epoch's own seed."""
        seed = _epoch_seed(self.config.seed, self.epoch)
        first = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.y), generator=first)
        if self.place == 0:
            self.generator = first
            torch.manual_seed(seed)
            self.totals.zero_()
        for index in order.split(self.config.batch_size)[self.place :]:
            self._batch(index)
            self.place += 1
            if self.on_samples is not None:
                self.on_samples(len(index))
            if self.saver and self.saver.due() and bool(self.totals.isfinite().all()) and self._finite():
                self.elapsed = time.perf_counter() - started
                self._save()
        loss, accuracy = (self.totals / len(self.y)).tolist()
        return loss, accuracy

    def _batch(self, index: Tensor) -> None:
        x, y = self.x[index].to(self.device), self.y[index].to(self.device)
        if self.augment is not None:
            x = self.augment(x, self.generator)
        for replay in range(self.replays):
            self._step((self.epoch * self.batches + self.place) * self.replays + replay, x, y)

    def _step(self, step: int, x: Tensor, y: Tensor) -> None:
        config, total = self.config, self.config.epochs * self.batches * self.replays
        self.lr = config.lr * learning_rate_factor(config.schedule, step, total, config.warmup)
        set_learning_rate(self.optimizer, self.lr)
        moment = Moment(step / total, self.generator)
        size = config.physical_batch or len(x)
        self.optimizer.zero_grad()
        for part, label in zip(x.split(size), y.split(size), strict=True):
            with self.precision.autocast():
                loss, correct = self.objective(self.module, part, label, moment)
            self.precision.backward(loss * (len(part) / len(x)))
            self.totals += torch.stack([loss.detach() * len(part), correct]).to(self.totals) / self.replays
        self.precision.step(self.optimizer, self.parameters, config.clip_norm)
        if self.average is not None:
            self.average.update()

    # Weights

    def _finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters)

    def _weights(self) -> dict[str, Tensor]:
        if self.average is None:
            return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        with self.average.applied():
            return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def _score(self, validate: Validate | None) -> float | None:
        if validate is None:
            return None
        if self.average is None:
            return float(self._evaluated(validate))
        with self.average.applied():
            return float(self._evaluated(validate))

    def _evaluated(self, look: Callable[[nn.Module], T]) -> T:
        modes = {layer: layer.training for layer in self.module.modules()}
        self.module.eval()
        try:
            return look(self.module)
        finally:
            for layer, mode in modes.items():
                layer.training = mode

    # Saving

    def _save(self) -> None:
        assert self.saver is not None
        parts = {
            "module": self.module.state_dict(),
            "good": self.good,
            "optimizer": optimizer_state(self.optimizer),
            "random": random_state(self.generator, self.device),
            "mean": self.average.state() if self.average else {},
            "objective": self.objective.state() if isinstance(self.objective, Stateful) else {},
        }
        tensors = {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
        facts = {
            "epoch": self.epoch,
            "place": self.place,
            "elapsed": self.elapsed,
            "lr": self.lr,
            "kept": self.kept,
            "best": None if math.isinf(self.best) else self.best,
            "done": [[epoch.loss, epoch.accuracy, epoch.lr, epoch.validation, epoch.seconds] for epoch in self.done],
            "scaler": self.precision.scaler.state_dict(),
        }
        self.saver.write(State({**tensors, "totals": self.totals}, facts))

    def _restore(self, state: State) -> None:
        facts = state.facts
        self.module.load_state_dict(state.part("module"))
        self.good = {name: tensor.to(self.device) for name, tensor in state.part("good").items()}
        restore_optimizer(self.optimizer, state.part("optimizer"))
        restore_random_state(state.part("random"), self.generator, self.device)
        if self.average is not None:
            self.average.restore(state.part("mean"))
        if isinstance(self.objective, Stateful):
            self.objective.restore({name: value.to(self.device) for name, value in state.part("objective").items()})
        if facts["scaler"]:
            self.precision.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.place, self.elapsed, self.lr = facts["epoch"], facts["place"], facts["elapsed"], facts["lr"]
        self.kept, self.best = facts["kept"], -math.inf if facts["best"] is None else facts["best"]
        self.done = [Epoch(*values) for values in facts["done"]]
        self.totals.copy_(state.tensors["totals"])
        if self.on_samples is not None:
            self.on_samples(self.epoch * len(self.y) + min(self.place * self.config.batch_size, len(self.y)))


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def _identity(module: nn.Module, x: Inputs, y: Tensor, *settings: object) -> str:
    """Hash of what the weights depend on; of the inputs the first and last few stand for all."""
    ends = torch.cat([torch.arange(len(y))[:8], torch.arange(len(y))[-8:]])
    versions = (torch.__version__, torch.get_num_threads(), next(module.parameters()).device.type)
    return fingerprint(module, len(x), x[ends], y, *settings, versions)
