"""The steps of one private training: sample, clip, add noise, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..attacks.errors import AuditError, UnsupportedError
from ..attacks.memory import freed_memory_kept
from .checkpoint import Checkpoint, Saved
from .clipping import Clipping
from .config import DPConfig
from .gradients.shares import numbers
from .gradients.tape import RecordGradients, Tape, exact
from .randomness import Streams
from .ranks import Ranks

RowLoss = Callable[[Tensor, Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]

_MEMORY = 2**22
"""Numbers that one pass keeps for its gradients by record: 16 MiB in float32, so that they stay near the processor."""

_MOST_MEMORY = 2**27
"""Numbers that they may take at most: 512 MiB."""

_HEAVY = 2**19
"""Numbers from which 32 rows together are as fast as 64."""

_PROBED = (2, 3)


class Sequence(Protocol):
    """Inputs by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned from.

    Attributes:
        loss: ``loss(logits, y)``, one number a row.
        augment: draws another view of each row, or None.
    """

    x: Sequence
    y: Tensor
    loss: RowLoss
    augment: Augment | None = None


@dataclass(frozen=True, slots=True)
class DPEpoch:
    """Mean loss and accuracy over the records drawn in one expected pass, before each step. Not private: computed on
    the training data without noise."""

    loss: float
    accuracy: float


@dataclass(slots=True)
class State:
    """How far a training is: everything but weights and the optimiser's tensors.

    Attributes:
        steps: taken.
        lost: begun, but undone by a crash, under a secret seed.
        loss, correct, records: sums of the present epoch.
    """

    steps: int = 0
    lost: int = 0
    drawn: int = 0
    clipped: int = 0
    empty: int = 0
    skipped: int = 0
    loss: float = 0.0
    correct: float = 0.0
    records: float = 0.0
    history: list[DPEpoch] = field(default_factory=list)


class PrivateRun:
    """One private training of ``module``, which it changes. Use it as a context: layers are watched inside only."""

    def __init__(
        self, module: nn.Module, task: Task, config: DPConfig, noise_multiplier: float, rate: float, steps: int
    ) -> None:
        self.module, self.task, self.config = module, task, config
        self.rate, self.planned = rate, steps
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise UnsupportedError("no parameter takes gradients: there is nothing to train")
        self.device = self.parameters[0].device
        self.ranks = Ranks()
        self.streams = self.ranks.common(Streams.of(config.seed), self.device)
        self.state = State()
        self.clipping = Clipping(
            config.clipping, config.max_grad_norm, _groups(module), config.batch_size, config.quantile
        )
        self.clipping.check(noise_multiplier)
        self.noise = self.clipping.gradient_noise(noise_multiplier)
        self.optimizer = _optimizer(self.parameters, config)
        self.averages = None if config.ema is None else [p.detach().clone() for p in self.parameters]
        # One block of memory holds the whole gradient: noise is drawn into it at once, sums are added to its parts.
        dtype = torch.float64 if self.parameters[0].dtype == torch.float64 else torch.float32
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), dtype=dtype, device=self.device)
        self.fill_noise = self.streams.noise(self.flat, secure=config.secure_noise)
        self.sums = [
            part.view_as(parameter)
            for part, parameter in zip(
                self.flat.split([p.numel() for p in self.parameters]), self.parameters, strict=True
            )
        ]
        # Without momentum torch's optimizer would take longer than its one line of work.
        self.simple = (
            config.optimizer == "sgd"
            and config.momentum == 0
            and all(parameter.dtype == dtype for parameter in self.parameters)
        )
        self.physical = config.physical_batch or 0
        self.slow: tuple[str, ...] = ()
        self.memory = ExitStack()

    def __enter__(self) -> PrivateRun:
        self.tape = Tape(self.module)
        self.slow = self.tape.slow
        if self.device.type == "cpu":
            self.memory.enter_context(freed_memory_kept())
        return self

    def __exit__(self, *_: object) -> None:
        self.tape.remove()
        self.memory.close()

    def train(self, on_samples: Callable[[int], None] | None, kept: Checkpoint | None, every: int | None) -> None:
        """Takes all steps that the plan has left."""
        self.ranks.same_start(list(self.module.state_dict().values()))
        self._probe()
        train_mode(self.module)
        if kept is not None:
            self._restore(kept.load())
            if on_samples is not None and self.state.steps:
                on_samples(self.state.steps * self.config.batch_size)
        epoch = math.ceil(self.planned / self.config.epochs)
        last = self.planned - self.state.lost
        try:
            while self.state.steps < last:
                if kept is not None and self.ranks.first:
                    kept.begin(self.state.steps + self.state.lost + 1)
                self.step()
                if on_samples is not None:
                    on_samples(self.config.batch_size)
                if self.state.steps % epoch == 0 or self.state.steps == last:
                    self._close_epoch()
                if kept is not None and (self.state.steps % (every or epoch) == 0 or self.state.steps == last):
                    self._keep(kept)
        finally:
            if kept is not None:
                kept.close()

    def result(self) -> dict[str, Tensor]:
        """The state dict to keep: with the moving average in place of the last weights, where there is one."""
        if self.averages is not None:
            with torch.no_grad():
                for parameter, average in zip(self.parameters, self.averages, strict=True):
                    parameter.copy_(average)
        return self.module.state_dict()

    # One step

    def draw(self) -> Tensor:
        """A Poisson sample: each record on its own coin, so the size varies and may be 0."""
        generator = self.streams.generator("sampling", self.state.steps)
        coins = torch.rand(len(self.task.y), generator=generator, dtype=torch.float64)
        return (coins < self.rate).nonzero().squeeze(1)

    def step(self) -> None:
        """One noisy step on a fresh sample, some records at a time so that their gradients fit in memory."""
        index = self.draw()
        self._begin_sums(self.state.steps)
        with self._random_layers():
            for part in self._parts(self.ranks.share(index)):
                self._accumulate(part)
        self.state.empty += not len(index)
        self._finish_sums()
        self._update()
        self.state.steps += 1
        self._average()

    def _parts(self, index: Tensor) -> tuple[Tensor, ...]:
        """Parts of equal size that fit in memory; a size of our own choice may be exceeded by half."""
        if not len(index):
            return ()
        needed = len(index) * self.config.views / self.physical
        return index.tensor_split(math.ceil(needed) if self.config.physical_batch else max(1, round(needed)))

    def _begin_sums(self, step: int) -> None:
        """Fills the gradient with its noise, in the first process; weights and noise are divided by the expected batch
        size, never by the drawn one, which would give away how many records were drawn."""
        size = self.noise * self.clipping.bound / self.config.batch_size
        if size == 0 or not self.ranks.first:
            self.flat.zero_()
        else:
            self.fill_noise(self.flat, size, step)

    def _finish_sums(self) -> None:
        self.ranks.add_up(self.flat)
        if self.clipping.name == "adaptive":
            count = torch.tensor(self.clipping.shorter, dtype=torch.float64)
            if self.ranks.count > 1:
                count = count.to(self.device, torch.float32)
                self.ranks.add_up(count)
            # Of its own stream: the processes that put in no noise must draw the same number.
            self.clipping.adapt(torch.randn((), generator=self.streams.generator("count", self.state.steps)), count)

    def _accumulate(self, part: Tensor) -> None:
        logits, losses, y, gradients = self._gradients(part)
        if not math.isfinite(float(gradients.squared_norms.sum())):
            finite = gradients.squared_norms.sum(0).isfinite()
            if not bool(finite.all()):
                # Not even clipping bounds such a record: leave it out, as if its gradient were 0.
                self.state.skipped += int((~finite).sum())
                self.state.drawn += int((~finite).sum())
                if bool(finite.any()):
                    self._accumulate(part[finite.cpu()])
                return
        weights, shortened = self.clipping.weights(gradients.squared_norms)
        # Most rules give all parameters the same weights: scaled once, not once for each.
        scaled = {id(weight): weight / self.config.batch_size for weight in {id(one): one for one in weights}.values()}
        gradients.add_to(self.sums, [scaled[id(weight)] for weight in weights])
        self._count(part, logits, losses, y, shortened)

    def _gradients(self, part: Tensor) -> tuple[Tensor, Tensor, Tensor, RecordGradients]:
        views = self.config.views
        x, y = self.task.x[part].to(self.device), self.task.y[part].to(self.device)
        if views > 1:
            x, y = x.repeat_interleave(views, 0), y.repeat_interleave(views, 0)
        if self.task.augment is not None:
            x = self.task.augment(x, self.augmentation)
        half = self.config.precision == "bfloat16"
        kind = self.device.type
        with self.tape.recording(len(part), views):
            with torch.autocast(kind, torch.bfloat16) if half else exact(kind):
                logits = self.module(x)
            logits = logits.float() if half else logits
            losses = self.task.loss(logits, y)
            if losses.shape != (len(y),):
                raise UnsupportedError(f"the loss gives {tuple(losses.shape)} for {len(y)} rows: one number a row")
            return logits, losses.detach(), y, self.tape.gradients(losses.sum() if views == 1 else losses.sum() / views)

    @torch.no_grad()
    def _count(self, part: Tensor, logits: Tensor, losses: Tensor, y: Tensor, shortened: Tensor) -> None:
        state, views = self.state, self.config.views
        state.clipped += int(shortened.sum())
        state.drawn += len(part)
        state.loss += float(losses.sum()) / views
        if logits.ndim == 2 and y.ndim == 1:
            state.correct += float((logits.argmax(1) == y).sum()) / views
        state.records += len(part)

    @torch.no_grad()
    def _update(self) -> None:
        self._set_lr()
        if self.simple:
            for parameter, total in zip(self.parameters, self.sums, strict=True):
                parameter.add_(total, alpha=-self.optimizer.param_groups[0]["lr"])
            return
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = total.to(parameter.dtype)
        self.optimizer.step()

    def _set_lr(self) -> None:
        if self.config.schedule == "cosine":
            done = self.state.steps / self.planned
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def _average(self) -> None:
        if self.averages is None or self.config.ema is None:
            return
        decay = min(self.config.ema, (1 + self.state.steps) / (10 + self.state.steps))
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def _random_layers(self) -> Iterator[None]:
        """Dropout draws from the global state: it is set for the step, differently in each process, and given back."""
        step = self.state.steps * self.ranks.count + self.ranks.rank
        if self.task.augment is not None:
            self.augmentation = self.streams.generator("augmentation", step)
        seed = self.streams.seed("dropout", step)
        if self.device.type == "cpu" and not torch.cuda.is_initialized():
            # torch.manual_seed would note the call, with its traceback, for each accelerator that is not in use:
            # more than half a millisecond, in memory that is never given back.
            before = torch.default_generator.get_state()
            torch.default_generator.manual_seed(seed)
            try:
                yield
            finally:
                torch.default_generator.set_state(before)
            return
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    # Before and after

    def _probe(self) -> None:
        """Sees on a few records, in eval mode, that gradients by record are those of the records alone.

        This finds networks that mix the records of a batch in ways that no list of layers can foresee. Nothing but a
        refusal comes out of it.
        """
        modes = {layer: layer.training for layer in self.module.modules()}
        self.module.eval()
        config, task = self.config, self.task
        try:
            self.config, self.task = _plain(config), Task(task.x, task.y, task.loss)
            for count in _PROBED:
                index = torch.arange(min(count, len(task.y)))
                *_, gradients = self._gradients(index)
                self._compare(index, gradients)
                if not config.physical_batch:
                    held = sum(numbers(share) for share in gradients.shares) / len(index)
                    self.physical = _rows_at_once(max(1.0, held))
        finally:
            self.config, self.task = config, task
            for layer, mode in modes.items():
                layer.training = mode

    def _compare(self, index: Tensor, gradients: RecordGradients) -> None:
        for place, one in enumerate(index):
            x, y = self.task.x[one.view(1)].to(self.device), self.task.y[one.view(1)].to(self.device)
            loss = self.task.loss(self.module(x), y).sum()
            alone = torch.autograd.grad(loss, self.parameters)
            length = math.hypot(*(float(part.norm()) for part in alone))
            seen = float(gradients.norms()[place])
            if math.isfinite(length) and abs(seen - length) > 1e-2 * length + 1e-5:
                raise UnsupportedError(
                    f"DP-SGD cannot train this model: in a batch of {len(index)} a record's gradient has length "
                    f"{seen:.4g}, alone {length:.4g}; some layer mixes the records of a batch"
                )

    def _close_epoch(self) -> None:
        state = self.state
        sums = torch.tensor([state.loss, state.correct, state.records], dtype=torch.float64)
        if self.ranks.count > 1:
            sums = sums.to(self.device, torch.float32)
            self.ranks.add_up(sums)
        loss, correct, records = sums.tolist()
        state.loss = state.correct = state.records = 0.0
        hopeless = records == 0 and state.skipped > 0  # no record of this epoch had a finite gradient
        if hopeless or not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise AuditError(
                f"private training diverged after {state.steps} steps (weights or gradients are not finite): lower lr "
                f"(now {self.config.lr:g})"
            )
        state.history.append(DPEpoch(loss / max(1, records), correct / max(1, records)))

    def _keep(self, kept: Checkpoint) -> None:
        if not self.ranks.first:
            return
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        for place, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        for place, average in enumerate(self.averages or ()):
            tensors[f"ema.{place}"] = average
        kept.save(tensors, {**asdict(self.state), "bound": self.clipping.bound, "physical": self.physical})

    def _restore(self, saved: Saved | None) -> None:
        if saved is None:
            return
        state = dict(saved.state)
        if state:
            self.clipping.bound, physical = state.pop("bound"), state.pop("physical")
            self.physical = self.config.physical_batch or physical
            history = [DPEpoch(**epoch) for epoch in state.pop("history")]
            self.state = State(**state, history=history)
            self._restore_tensors(saved.tensors)
        if self.config.seed is None:  # what was undone will not be repeated: other noise on top of it is a new query
            self.state.lost = saved.begun - self.state.steps
            if self.state.lost + self.state.steps > self.planned:
                raise UnsupportedError(
                    f"{saved.begun} steps were begun, but the budget has {self.planned}: it is spent"
                )

    def _restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.module.load_state_dict(
            {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
        )
        full = self.optimizer.state_dict()
        per_parameter: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, place, name = key.split(".", 2)
                per_parameter.setdefault(int(place), {})[name] = value
        self.optimizer.load_state_dict({**full, "state": per_parameter})
        if self.averages is not None:
            self.averages = [tensors[f"ema.{place}"].to(self.device) for place in range(len(self.parameters))]


def _rows_at_once(held: float) -> int:
    """How many rows go through together when each keeps ``held`` numbers: few enough to stay near the processor, but
    not so few that the passes themselves get slow, unless memory demands it. Rows that keep much have much to do."""
    least = min(64.0 if held < _HEAVY else 32.0, _MOST_MEMORY / held)
    return max(1, round(min(1024.0, max(least, _MEMORY / held))))


def train_mode(module: nn.Module) -> None:
    """Train mode, except for frozen layers, whose statistics must not move."""
    module.train()
    for layer in module.modules():
        own = list(layer.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            layer.eval()


def _groups(module: nn.Module) -> list[int]:
    """For each trained parameter the number of the layer that holds it."""
    groups: dict[nn.Parameter, int] = {}
    number = 0
    for layer in module.modules():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad and p not in groups]
        groups |= dict.fromkeys(own, number)
        number += bool(own)
    return [groups[parameter] for parameter in module.parameters() if parameter.requires_grad]


def _optimizer(parameters: list[nn.Parameter], config: DPConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum)
    return torch.optim.Adam(parameters, lr=config.lr)


def _plain(config: DPConfig) -> DPConfig:
    """For the probe: one view, full precision."""
    return replace(config, views=1, precision="float32")
