"""What a model costs to keep and to run: bytes, time, memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...attacks.models import attacking
from ...attacks.statistics import quantile_interval
from ...reports.record import Metric
from ..samples import Samples
from ..target import Target

_REPEATS = 30
_WARM_UP = 3
_MOST_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Measured on one input, batch of one.

    Attributes:
        parameters: numbers that make up the model: parameters, and the integer weights that quantisation left.
        size: bytes of the state dict, as it is stored.
        seconds: of single answers, one entry a repeat.
        peak: bytes of intermediate results held at once, weights and input not counted.
    """

    parameters: int
    size: int
    seconds: tuple[float, ...]
    peak: int


def footprint(module: nn.Module, x: Tensor, repeats: int = _REPEATS) -> Footprint:
    """Measures a module in eval mode on ``x`` ``(1, ...)``, which must be on the module's device.

    Time is wall time on the threads that torch is set to; fewer than ``repeats`` answers when one is slow.
    """
    with torch.no_grad(), attacking(module):
        peak = _peak(module, x)
        seconds = _seconds(module, x, repeats)
    return Footprint(parameter_count(module), state_bytes(module), seconds, peak)


def parameter_count(module: nn.Module) -> int:
    """Parameters, shared ones once, and int8 weights."""
    integers = sum(buffer.numel() for buffer in module.buffers() if buffer.dtype == torch.int8)
    return sum(parameter.numel() for parameter in module.parameters()) + integers


def state_bytes(module: nn.Module) -> int:
    """Bytes of all tensors of the state dict, shared ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in module.state_dict().values() if tensor.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def footprint_metrics(target: Target, samples: Samples, module: nn.Module | None = None) -> tuple[Metric, ...]:
    """The footprint of ``module`` (the target's when left out) on the first of ``samples``, as metrics.

    Parameters, bytes, median latency with the interval of its order statistics, and peak memory.
    """
    raw, _ = next(samples.batches(1))
    x = target.encode(raw).to(target.device)
    return _metrics(footprint(target.module if module is None else module, x))


def with_footprint(metrics: Iterable[Metric], found: tuple[Metric, ...]) -> tuple[Metric, ...]:
    """``metrics``, and those of a footprint whose names are not among them yet."""
    metrics = tuple(metrics)
    known = {metric.name for metric in metrics}
    return (*metrics, *(metric for metric in found if metric.name not in known))


def _metrics(found: Footprint) -> tuple[Metric, ...]:
    times = 1e3 * np.array(found.seconds)
    low, high = quantile_interval(times, 0.5)
    return (
        Metric(name="parameters", value=found.parameters, higher_is_better=False, label="Parameters"),
        Metric(name="size_bytes", value=found.size, unit="bytes", higher_is_better=False, label="Size of the weights"),
        Metric(
            name="latency_ms",
            value=float(np.median(times)),
            ci_low=None if np.isnan(low) else low,
            ci_high=None if np.isnan(high) else high,
            n=len(times),
            unit="ms",
            higher_is_better=False,
            label="Time of one answer (median)",
            method="" if np.isnan(low) else "order statistics",
        ),
        Metric(
            name="peak_memory_bytes",
            value=found.peak,
            unit="bytes",
            higher_is_better=False,
            label="Memory of intermediate results",
        ),
    )


def _seconds(module: nn.Module, x: Tensor, repeats: int) -> tuple[float, ...]:
    for _ in range(_WARM_UP):
        module(x)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - began < _MOST_SECONDS):
        _wait(x)
        start = time.perf_counter()
        module(x)
        _wait(x)
        times.append(time.perf_counter() - start)
    return tuple(times)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _peak(module: nn.Module, x: Tensor) -> int:
    if x.is_cuda:
        _wait(x)
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        module(x)
        _wait(x)
        return torch.cuda.max_memory_allocated(x.device) - before
    held = _Held([*module.parameters(), *module.buffers(), x])
    with held:
        module(x)
    return held.peak


class _Held(TorchDispatchMode):
    """Adds up the bytes of results while they live, those of ``known`` tensors not counted.

    Counts what operators return, not scratch memory inside of a kernel.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not size or place in self._known:
            return
        if place not in self._users:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._users[place] = self._users.get(place, 0) + 1
        weakref.finalize(tensor, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self.now -= size
