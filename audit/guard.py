"""Runs other people's code (a check, a variant, the user's model) so that it cannot harm what comes after."""

from __future__ import annotations

import gc
import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from .errors import AuditError, OutputError
from .storage import write_atomic

T = TypeVar("T")

FIRST_BATCH = 256
"""Half of what checks use when no batch size is given: the first size to try after memory ran out."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


class StepError(Exception):
    """A check or variant failed; the message is what the record says."""


def guarded(work: Callable[[], T], seed: int, module: nn.Module, log: Path, shown_as: str) -> T:
    """The value of ``work``, which finds the same random state each time and leaves ``module``'s switches as found.

    Args:
        log: where the traceback of an unexpected error goes, and warnings that libraries raised; an old one goes.
        shown_as: how the message calls the log.

    Raises:
        StepError: for whatever ``work`` raises, but for a full disk (OutputError), Ctrl-C and lack of memory
            (MemoryError).
    """
    with suppress(OSError):
        log.unlink()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("default")
        try:
            with seeded(seed), as_found(module):
                return work()
        except OutputError:
            raise
        except AuditError as error:
            raise StepError(str(error)) from error
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            write_atomic(log, "".join(traceback.format_exception(error)).encode())
            raise StepError(f"{type(error).__name__}: {error} (traceback: {shown_as})") from error
        finally:
            _note_warnings(raised, log)


def with_less_memory(work: Callable[[int | None], T], batch_size: int | None) -> tuple[T, int | None]:
    """``work(batch size)``, repeated with half the batch when memory runs out; the value and the last batch size.

    Raises:
        StepError: when one sample at a time is still too much.
    """
    while True:
        try:
            return work(batch_size), batch_size
        except MemoryError as error:
            if batch_size == 1:
                raise StepError("memory ran out even with one sample at a time") from error
            batch_size = FIRST_BATCH if batch_size is None else batch_size // 2
        _free_memory()  # outside the handler: the exception holds the tensors of its frames


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on the host or the device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global random states (libraries draw from them) set for the block and given back after.

    So a check's result does not depend on what ran before it in the same process.
    """
    python, legacy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextmanager
def as_found(module: nn.Module) -> Iterator[None]:
    """Gives train/eval modes and gradient switches back as they were, and drops gradients."""
    modes = [(part, part.training) for part in module.modules()]
    switches = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, wanted in switches:
            parameter.requires_grad_(wanted)
            parameter.grad = None


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _note_warnings(raised: list[warnings.WarningMessage], log: Path) -> None:
    lines = list(dict.fromkeys(f"{item.category.__name__}: {item.message}" for item in raised))
    if not lines:
        return
    with suppress(OSError):
        before = log.read_text("utf-8") if log.exists() else ""
        write_atomic(log, (before + "\n".join(lines) + "\n").encode())
