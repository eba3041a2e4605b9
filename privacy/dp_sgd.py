"""DP-SGD: training whose result barely depends on any single record (arXiv 1607.00133)."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..attacks.errors import UnsupportedError
from .accounting import Budget, default_delta, epsilon, noise_for
from .checkpoint import Checkpoint
from .config import DPConfig
from .guidance import Setting, advice
from .layers import private_structure
from .private_run import Augment, DPEpoch, PrivateRun, RowLoss, Task

__all__ = ["DPConfig", "DPEpoch", "DPResult", "Inputs", "dp_fine_tune"]


class Inputs(Protocol):
    """Training inputs by position, ``inputs[index] -> (b, ...)``: a tensor, or something that reads from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DPResult:
    """A privately trained module and what it spent.

    Attributes:
        module: plain, no hooks; layers may differ from the input's (see ``warnings``).
        budget: epsilon, delta and how they were accounted, for all steps that touched the data.
        clipped: share of the drawn records whose gradient was longer than the bound.
        empty_batches: steps that drew no record; they add noise and count like any other.
        lost_steps: steps that a crash undid under a secret seed; they count, though the weights do not show them.
        clip_norm: the bound at the end (it moves with adaptive clipping).
        skipped: records drawn whose gradient was not finite; they were left out.
        slow_layers: layers without a closed form, whose gradients by record took another pass.
    """

    module: nn.Module
    budget: Budget
    history: tuple[DPEpoch, ...]
    clipped: float
    empty_batches: int
    seconds: float
    warnings: tuple[str, ...]
    lost_steps: int = 0
    clip_norm: float = 0.0
    skipped: int = 0
    slow_layers: tuple[str, ...] = ()


def dp_fine_tune(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    config: DPConfig,
    on_samples: Callable[[int], None] | None = None,
    loss: RowLoss | None = None,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    every: int | None = None,
) -> DPResult:
    """Trains a copy of ``module``; parameters that take no gradients stay as they are.

    The guarantee covers this training only. It says nothing of records that already shaped the weights it starts from,
    nor of choices (learning rate, epochs) that were made by looking at results on these records.

    Where ``torch.distributed`` is initialised, every process calls this with the same arguments and shares the work.

    Args:
        x: inputs ``(n, ...)`` as the module takes them.
        y: labels int64 ``(n,)``.
        on_samples: called after each step with the number of records it was expected to use.
        loss: ``loss(logits, y) -> (rows,)``, one number a row; cross-entropy when left out.
        augment: ``augment(x, generator) -> x``, drawn anew for each row; needed when ``config.views`` is above 1.
        checkpoint: file in which the training is kept; one that is there is continued. With a known seed the steps
            that a crash undid are repeated to the bit. With a secret seed they are made with fresh noise, and both
            attempts count.
        every: steps between checkpoints; once an epoch when left out.

    Raises:
        UnsupportedError: for empty data, a batch larger than the data, layers that cannot be trained privately, or a
            checkpoint of another training.
        AuditError: when the weights stop being finite.
    """
    n = len(x)
    if n == 0 or n != len(y):
        raise UnsupportedError(f"{n} inputs and {len(y)} labels: both must be the same number above 0")
    if config.batch_size > n:
        raise UnsupportedError(f"batch_size is {config.batch_size}, but there are only {n} records")
    if config.views > 1 and augment is None:
        raise UnsupportedError(f"views is {config.views}, but nothing tells them apart: give augment")
    started = time.perf_counter()
    plan = _plan(config, n)
    private, notes = private_structure(module)
    task = Task(x, y, loss or _cross_entropy, augment)
    effect = _replacement_effect(module, private, task) if _lost_statistics(module, private) else ()
    hints = tuple(advice(_setting(config, plan, private, n)))
    kept = None if checkpoint is None else Checkpoint(checkpoint, _fingerprint(private, x, y, config, plan))
    run = PrivateRun(copy.deepcopy(private), task, config, plan.noise_multiplier, plan.sample_rate, plan.steps)
    with torch.enable_grad(), run:
        run.train(on_samples, kept, every)
    private.load_state_dict(run.result())
    private.train(module.training)
    state = run.state
    budget = epsilon(plan.noise_multiplier, plan.sample_rate, state.steps + state.lost, plan.delta)
    return DPResult(
        module=private,
        budget=budget,
        history=tuple(state.history),
        clipped=state.clipped / max(1, state.drawn),
        empty_batches=state.empty,
        seconds=time.perf_counter() - started,
        warnings=(*notes, *effect, *budget.warnings, *hints, *_after(run), *_caveats(config, plan, n)),
        lost_steps=state.lost,
        clip_norm=run.clipping.bound,
        skipped=state.skipped,
        slow_layers=run.slow,
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


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits, y, reduction="none")


def _fingerprint(module: nn.Module, x: Inputs, y: Tensor, config: DPConfig, plan: _Plan) -> str:
    """Of everything that a continued training must share with the one that was cut off; how many rows fit in memory
    may change."""
    facts = [asdict(replace(config, physical_batch=None)), asdict(plan), len(x)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(y.cpu().contiguous().numpy().tobytes())
    for place in (0, len(x) // 2, len(x) - 1):
        digest.update(x[torch.tensor([place])].cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, value in module.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {parameter.requires_grad}".encode())
    return digest.hexdigest()


_LOOK = 512
"""Training records on which the effect of replaced layers is measured."""


def _lost_statistics(before: nn.Module, after: nn.Module) -> bool:
    return any("running_mean" in key for key in before.state_dict().keys() - after.state_dict().keys())


@torch.no_grad()
def _replacement_effect(before: nn.Module, after: nn.Module, task: Task) -> tuple[str, ...]:
    """What replacing layers did to the accuracy, before any training, on training records."""
    index = torch.arange(min(_LOOK, len(task.y)))
    x, y = task.x[index], task.y[index]
    rates = []
    for module in (before, after):
        modes = {layer: layer.training for layer in module.modules()}
        device = next(module.parameters()).device
        logits = module.eval()(x.to(device))
        if logits.ndim != 2 or y.ndim != 1:
            return ()
        rates.append(float((logits.argmax(1).cpu() == y.cpu()).double().mean()))
        for layer, mode in modes.items():
            layer.training = mode
    return (
        f"On {len(index)} training records the network was right on {rates[0]:.1%} before the layers were replaced and "
        f"on {rates[1]:.1%} after, before any training (measured without noise, so not covered by epsilon).",
    )


def _setting(config: DPConfig, plan: _Plan, module: nn.Module, n: int) -> Setting:
    trained = [parameter.detach() for parameter in module.parameters() if parameter.requires_grad]
    length = math.hypot(*(float(parameter.norm()) for parameter in trained))
    return Setting(
        epsilon=config.epsilon,
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
        batch_size=config.batch_size,
        epochs=config.epochs,
        steps=plan.steps,
        records=n,
        numbers=sum(parameter.numel() for parameter in trained),
        length=length,
        max_grad_norm=config.max_grad_norm,
        lr=config.lr,
        sgd=config.optimizer == "sgd" and config.schedule == "constant",
    )


def _after(run: PrivateRun) -> Iterator[str]:
    state = run.state
    if state.lost:
        yield (
            f"{state.lost} steps were undone by a crash: they touched the data, so they count, and as many fewer steps "
            "shaped the weights"
        )
    if state.skipped:
        yield f"{state.skipped} times a record's gradient was not finite; it was left out of its step"
    if run.slow:
        yield f"no closed form for {', '.join(run.slow)}: gradients by record took another pass of that layer"


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
