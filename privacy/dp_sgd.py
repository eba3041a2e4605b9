"""DP-SGD: training whose result barely depends on any single record (arXiv 1607.00133)."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..attacks.errors import AuditError, UnsupportedError
from .accounting import Budget, default_delta, epsilon, noise_for
from .layers import private_structure

_GRADIENT_MEMORY = 2**23
"""Numbers that the per-sample gradients of one physical batch may take up: 32 MiB in float32; more is no faster."""


class Inputs(Protocol):
    """Training inputs by position, ``inputs[index] -> (b, ...)``: a tensor, or something that reads from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DPConfig:
    """How to train privately. Either ``epsilon`` or ``noise_multiplier`` is given.

    Args:
        epsilon: budget to spend; the noise follows from it.
        noise_multiplier: standard deviation of the noise divided by ``max_grad_norm``.
        delta: probability with which the guarantee may fail; ``n ** -1.1`` when left out.
        epochs: passes over the data, in expectation.
        batch_size: expected number of records per step; each record joins with probability ``batch_size / n``.
        max_grad_norm: l2 norm to which each record's gradient is clipped.
        lr, optimizer, momentum: of the update; sgd or adam, constant learning rate.
        seed: of sampling and noise. Whoever knows it can subtract the noise: use None, which draws both from the
            operating system, for weights that will be published.
        secure_noise: sums four Gaussians for each noise value, against attacks on floating-point noise
            (arXiv 2107.10138). The generator is still not a cryptographic one.
        physical_batch: most records whose gradients are in memory at once; chosen by model size when left out. It
            changes the result by rounding only.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    epochs: int = 10
    batch_size: int = 256
    max_grad_norm: float = 1.0
    lr: float = 0.5
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    seed: int | None = 0
    secure_noise: bool = False
    physical_batch: int | None = None

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise UnsupportedError("DP-SGD needs either epsilon or noise_multiplier (one of the two)")
        if self.epochs < 1 or self.batch_size < 1 or not self.max_grad_norm > 0 or not self.lr > 0:
            raise UnsupportedError("epochs and batch_size must be at least 1, max_grad_norm and lr above 0")


@dataclass(frozen=True, slots=True)
class DPEpoch:
    """Mean loss and accuracy over the records drawn in one expected pass, before each step. Not private: computed on
    the training data without noise."""

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class DPResult:
    """A privately trained module and what it spent.

    Attributes:
        module: plain, no hooks; layers may differ from the input's (see ``warnings``).
        budget: epsilon, delta and how they were accounted, for the steps that were taken.
        clipped: share of the drawn records whose gradient was longer than ``max_grad_norm``.
        empty_batches: steps that drew no record; they add noise and count like any other.
    """

    module: nn.Module
    budget: Budget
    history: tuple[DPEpoch, ...]
    clipped: float
    empty_batches: int
    seconds: float
    warnings: tuple[str, ...]


def dp_fine_tune(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    config: DPConfig,
    on_samples: Callable[[int], None] | None = None,
) -> DPResult:
    """Trains a copy of ``module`` with cross-entropy; parameters that take no gradients stay as they are.

    The guarantee covers this training only. It says nothing of records that already shaped the weights it starts from,
    nor of choices (learning rate, epochs) that were made by looking at results on these records.

    Args:
        x: inputs ``(n, ...)`` as the module takes them.
        y: labels int64 ``(n,)``.
        on_samples: called after each step with the number of records it was expected to use.

    Raises:
        UnsupportedError: for empty data, a batch larger than the data, or layers that cannot be trained privately.
        AuditError: when the weights stop being finite.
    """
    n = len(x)
    if n == 0 or n != len(y):
        raise UnsupportedError(f"{n} inputs and {len(y)} labels: both must be the same number above 0")
    if config.batch_size > n:
        raise UnsupportedError(f"batch_size is {config.batch_size}, but there are only {n} records")
    started = time.perf_counter()
    plan = _plan(config, n)
    private, notes = private_structure(module)
    with torch.enable_grad(), _seeded(config.seed):
        run = _Run(copy.deepcopy(private), x, y, config, plan)
        run.train(on_samples)
    private.load_state_dict(run.module.state_dict())
    private.train(module.training)
    budget = epsilon(plan.noise_multiplier, plan.sample_rate, run.steps, plan.delta)
    return DPResult(
        module=private,
        budget=budget,
        history=tuple(run.history),
        clipped=run.clipped / max(1, run.drawn),
        empty_batches=run.empty_batches,
        seconds=time.perf_counter() - started,
        warnings=(*notes, *budget.warnings, *_caveats(config, plan, n)),
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    noise_multiplier: float
    sample_rate: float
    steps: int
    delta: float


def _plan(config: DPConfig, n: int) -> _Plan:
    delta = default_delta(n) if config.delta is None else config.delta
    sample_rate = config.batch_size / n
    steps = math.ceil(config.epochs / sample_rate)
    if config.noise_multiplier is not None:
        return _Plan(config.noise_multiplier, sample_rate, steps, delta)
    assert config.epsilon is not None
    return _Plan(noise_for(config.epsilon, sample_rate, steps, delta), sample_rate, steps, delta)


def _caveats(config: DPConfig, plan: _Plan, n: int) -> Iterator[str]:
    if plan.delta > 1 / n:
        yield f"delta {plan.delta:g} is above 1/n = {1 / n:.2g}: a method that publishes one record would satisfy it"
    if plan.noise_multiplier == 0:
        yield "the noise multiplier is 0: there is no privacy guarantee"
    if config.seed is not None:
        yield (
            f"sampling and noise came from the known seed {config.seed}: whoever knows it can subtract the noise. "
            "Train with a secret seed before publishing the weights"
        )
    yield "epsilon does not cover the choice of hyper-parameters, nor the training curve, which has no noise"


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Dropout draws from the global state: it is set from the seed inside and restored on leaving."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        # Hooks on the first layer fire although its input takes no gradient; that is how they are meant to be used.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        torch.manual_seed(torch.Generator().seed() % 2**63 if seed is None else seed)
        yield


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


class _Run:
    """The state of one private training."""

    def __init__(self, module: nn.Module, x: Inputs, y: Tensor, config: DPConfig, plan: _Plan) -> None:
        self.module, self.x, self.y, self.config, self.plan = module, x, y, config, plan
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise UnsupportedError("no parameter takes gradients: there is nothing to train")
        self.device = self.parameters[0].device
        self.physical = config.physical_batch or max(
            1, _GRADIENT_MEMORY // sum(parameter.numel() for parameter in self.parameters)
        )
        self.sampling = _generator(config.seed, torch.device("cpu"))
        self.history: list[DPEpoch] = []
        self.steps = self.drawn = self.clipped = self.empty_batches = 0
        self.totals = torch.zeros(3, dtype=torch.float64)  # loss, correct, records of the present epoch
        _train_mode(module)
        # strict refuses any buffer, even constants; layers that learn statistics were refused before.
        self.hooked = GradSampleModule(module, loss_reduction="sum", strict=False)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> DPOptimizer:
        config = self.config
        plain = (
            torch.optim.SGD(self.parameters, lr=config.lr, momentum=config.momentum)
            if config.optimizer == "sgd"
            else torch.optim.Adam(self.parameters, lr=config.lr)
        )
        seed = None if config.seed is None else config.seed + 1  # not the numbers that chose the batches
        return DPOptimizer(
            plain,
            noise_multiplier=self.plan.noise_multiplier,
            max_grad_norm=config.max_grad_norm,
            expected_batch_size=config.batch_size,  # exactly n * sample_rate, not rounded
            generator=_generator(seed, self.device),
            secure_mode=config.secure_noise,
        )

    def train(self, on_samples: Callable[[int], None] | None) -> None:
        per_epoch = math.ceil(self.plan.steps / self.config.epochs)
        try:
            for step in range(self.plan.steps):
                self._step(self._draw())
                if on_samples is not None:
                    on_samples(self.config.batch_size)
                if (step + 1) % per_epoch == 0 or step + 1 == self.plan.steps:
                    self._close_epoch()
        finally:
            self.hooked.remove_hooks()

    def _draw(self) -> Tensor:
        """A Poisson sample: each record on its own coin, so the size varies and may be 0."""
        return (torch.rand(len(self.y), generator=self.sampling) < self.plan.sample_rate).nonzero().squeeze(1)

    def _step(self, index: Tensor) -> None:
        """One noisy step on the records of ``index``, some at a time so that their gradients fit in memory."""
        self.optimizer.zero_grad()
        parts = index.split(self.physical) if len(index) else ()
        for place, part in enumerate(parts):
            self._accumulate(part)
            if place + 1 < len(parts):
                self.optimizer.signal_skip_step(do_skip=True)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if not parts:
            self.empty_batches += 1
            for parameter in self.parameters:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.steps += 1

    def _accumulate(self, part: Tensor) -> None:
        x, y = self.x[part].to(self.device), self.y[part].to(self.device)
        logits = self.hooked(x)
        loss = cross_entropy(logits, y, reduction="sum")
        loss.backward()
        self.clipped += int((self._gradient_norms(len(part)) > self.config.max_grad_norm).sum())
        self.drawn += len(part)
        correct = (logits.argmax(1) == y).sum()
        self.totals += torch.stack([loss.detach().double(), correct.double(), x.new_tensor(len(x)).double()]).cpu()

    def _gradient_norms(self, b: int) -> Tensor:
        """l2 norm ``(b,)`` of each record's gradient over all parameters."""
        gradients: list[Tensor] = []
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                gradient = getattr(parameter, "grad_sample", None)
                if not isinstance(gradient, Tensor):
                    raise UnsupportedError(
                        f"{name} gives no gradient per record: it takes no part in the output, or its layer is unknown "
                        "to Opacus; freeze it or use a supported layer"
                    )
                if len(gradient) != b:
                    raise UnsupportedError(
                        f"{name} gives {len(gradient)} gradients for {b} records: its layer must get the batch in its "
                        "first dimension, once per record"
                    )
                gradients.append(gradient)
        return torch.stack([gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]).norm(dim=0)

    def _close_epoch(self) -> None:
        loss, correct, records = self.totals.tolist()
        self.totals.zero_()
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise AuditError(
                f"private training diverged after {self.steps} steps (weights are not finite): lower lr "
                f"(now {self.config.lr:g})"
            )
        self.history.append(DPEpoch(loss / max(1, records), correct / max(1, records)))


def _train_mode(module: nn.Module) -> None:
    """Train mode, except for frozen layers, whose statistics must not move."""
    module.train()
    for layer in module.modules():
        own = list(layer.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            layer.eval()
