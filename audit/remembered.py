"""The assertions of tests with a memory: what was measured in an earlier run on the same model and data is taken over.

Keyed as the runner's results are: model (weights, structure, source), data, settings, versions.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..attacks.threat import Threat
from ..reports.record import Metric
from . import assertions, invariance
from .cache import stable_hash
from .environment import tool
from .measured import Measured
from .storage import write_atomic

_VERSION = 1
"""Part of every key: raise it whenever a measurement may change."""


@dataclass(frozen=True, slots=True)
class Audits:
    """Measurements and assertions on tensors; ``folder`` keeps what was measured, None keeps nothing."""

    folder: Path | None = None

    def evasion(self, model: Any, x: Any, y: Any, norm: Any = "linf", eps: Any = 8 / 255, **options: Any) -> Measured:
        """Robust accuracy, see :func:`assertions.evasion`; ``norm`` may be a whole :class:`Threat`."""
        if isinstance(norm, Threat):
            norm, eps, options = norm.norm, norm.eps, {**options, "bounds": norm.bounds}
        return self._measured(assertions.evasion, model, (x, y), {"norm": norm, "eps": eps, **options})

    def accuracy(self, model: Any, x: Any, y: Any, **options: Any) -> Measured:
        """See :func:`assertions.accuracy`."""
        return self._measured(assertions.accuracy, model, (x, y), options)

    def calibration_error(self, model: Any, x: Any, y: Any, **options: Any) -> Measured:
        """See :func:`assertions.calibration_error`."""
        return self._measured(assertions.calibration_error, model, (x, y), options)

    def membership(self, model: Any, members: Any, nonmembers: Any, **options: Any) -> Measured:
        """See :func:`assertions.membership`."""
        return self._measured(assertions.membership, model, (members, nonmembers), options)

    def invariance(self, predict: Any, inputs: Any, change: Any, **options: Any) -> Measured:
        """See :func:`invariance.invariance`; measured anew each time, since ``predict`` and ``change`` are any code."""
        return invariance.invariance(predict, inputs, change, **options)

    def assert_robust(
        self, model: Any, x: Any, y: Any, norm: Any = "linf", eps: Any = 8 / 255, *, at_least: float, **options: Any
    ) -> Measured:
        """See :func:`assertions.assert_robust`."""
        __tracebackhide__ = True
        confidence = options.pop("confidence", "interval")
        measured = self.evasion(model, x, y, norm, eps, **options)
        assertions.require(measured, ">=", at_least, confidence, "broken with the smallest change")
        return measured

    def assert_accurate(self, model: Any, x: Any, y: Any, *, at_least: float, **options: Any) -> Measured:
        """See :func:`assertions.assert_accurate`."""
        __tracebackhide__ = True
        confidence = options.pop("confidence", "interval")
        measured = self.accuracy(model, x, y, **options)
        assertions.require(measured, ">=", at_least, confidence, "wrong with the highest confidence")
        return measured

    def assert_calibrated(self, model: Any, x: Any, y: Any, *, at_most: float, **options: Any) -> Measured:
        """See :func:`assertions.assert_calibrated`."""
        __tracebackhide__ = True
        confidence = options.pop("confidence", "interval")
        measured = self.calibration_error(model, x, y, **options)
        assertions.require(measured, "<=", at_most, confidence, "furthest off")
        return measured

    def assert_private(self, model: Any, members: Any, nonmembers: Any, *, at_most: float, **options: Any) -> Measured:
        """See :func:`assertions.assert_private`."""
        __tracebackhide__ = True
        confidence = options.pop("confidence", "interval")
        measured = self.membership(model, members, nonmembers, **options)
        assertions.require(measured, "<=", at_most, confidence, "most exposed")
        return measured

    def assert_invariant(self, predict: Any, inputs: Any, change: Any, *, at_least: float, **options: Any) -> Measured:
        """See :func:`assertions.assert_invariant`."""
        __tracebackhide__ = True
        return assertions.assert_invariant(predict, inputs, change, at_least=at_least, **options)

    def _measured(
        self, measure: Callable[..., Measured], model: Any, data: tuple[Any, Any], options: dict[str, Any]
    ) -> Measured:
        key = None if self.folder is None else _key(measure.__name__, model, data, options)
        if self.folder is None or key is None:
            return measure(model, *data, **options)
        path = self.folder / f"{key}.json"
        kept = _read(path)
        if kept is None:
            kept = measure(model, *data, **options)
            content = {"metric": json.loads(kept.metric.model_dump_json()), "how": kept.how, "worst": kept.worst}
            write_atomic(path, json.dumps(content).encode())
        return kept


def identity(model: Any) -> str | None:
    """Hash of what a module answers with: weights, structure, and the source of its classes.

    None where that cannot be known: a plain function, or a class whose source is not to be had.
    """
    if not isinstance(model, nn.Module):
        return None
    sources = set()
    for part in model.modules():
        cls = type(part)
        if cls.__module__.partition(".")[0] == "torch":
            continue
        try:
            sources.add((cls.__qualname__, inspect.getsource(inspect.getmodule(cls) or cls)))
        except (OSError, TypeError):
            return None
        if any(callable(value) for value in vars(part).values() if not isinstance(value, nn.Module)):
            return None
    digest = hashlib.sha256(repr(model).encode())
    digest.update(stable_hash(sorted(sources)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + _digest(tensor).encode())
    return digest.hexdigest()


def _key(name: str, model: Any, data: Any, options: dict[str, Any]) -> str | None:
    known = identity(model)
    if known is None:
        return None
    versions = [_VERSION, tool(), torch.__version__]
    return stable_hash([name, known, _digest(data), {key: _plain(value) for key, value in options.items()}, versions])


def _plain(value: Any) -> str:
    """A setting as text: attacks are dataclasses, which print their fields."""
    return value if isinstance(value, str) else repr(value)


def _digest(value: Any) -> str:
    """Hash of tensors, arrays, lists of numbers, and pairs of them."""
    if isinstance(value, tuple):
        return stable_hash([_digest(part) for part in value])
    array = value.detach().cpu().contiguous() if isinstance(value, Tensor) else np.ascontiguousarray(value)
    if isinstance(array, Tensor):
        shape, kind, data = tuple(array.shape), str(array.dtype), array.flatten().view(torch.uint8).numpy().tobytes()
    else:
        shape, kind, data = array.shape, str(array.dtype), array.tobytes()
    return hashlib.sha256(f"{shape}{kind}".encode() + data).hexdigest()


def _read(path: Path) -> Measured | None:
    try:
        content = json.loads(path.read_bytes())
        return Measured(Metric.model_validate(content["metric"]), content["how"], tuple(content["worst"]))
    except (OSError, ValueError, ValidationError, KeyError, TypeError):
        return None
