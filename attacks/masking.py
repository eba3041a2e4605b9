"""Is a robust accuracy found with gradients to be believed? Tells robust models from masked ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attack import Model
from .engine import check_inputs
from .errors import UnsupportedError
from .models import CountingModel, attacking, check_logits
from .probes.comparisons import comparison_flags
from .probes.flag import Flag, FlagName
from .probes.gradients import gradient_flags
from .probes.outputs import mode_flags, output_flags
from .probes.subject import Subject
from .streams import Streams
from .threat import Threat

_NUMBERS = 2**21
"""In one batch, unless told otherwise."""

_NO_FUNCTION: tuple[FlagName, FlagName] = ("randomised", "batch_dependent")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What :func:`diagnose` found.

    Attributes:
        flags: reasons for doubt, none when there are none.
        samples: how many samples it rests on; 0 when the model classifies none correctly, and nothing was probed.
        forwards, backwards: samples passed through the model.
    """

    flags: tuple[Flag, ...]
    samples: int
    forwards: int
    backwards: int

    @property
    def masked(self) -> bool:
        """Whether gradient attacks cannot be relied on here."""
        return any(flag.severity == "high" for flag in self.flags)

    def has(self, name: FlagName) -> bool:
        """Whether ``name`` is among the flags."""
        return any(flag.name == name for flag in self.flags)


def diagnose(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    samples: int = 64,
    batch_size: int | None = None,
) -> Diagnosis:
    """Looks for signs that gradients do not show how weak the model is.

    AutoAttack's flags (arXiv 2003.01690) and what can be automated of the checklist of Carlini et al. (arXiv
    1902.06705). First what the model answers is looked at, then its gradients; then short attacks are compared with
    each other, unless there is no gradient or the answer is not a function of the input, when comparisons mean nothing.

    Costs at most 600 forwards and 150 backwards per sample diagnosed, far fewer where attacks succeed. The flags are
    calibrated so that ordinarily trained and adversarially trained networks raise none; a mask that none of the probes
    sees is possible. What is masked does not depend on a goal: for a targeted threat the untargeted one is examined.

    Args:
        model: maps ``(b, ...)`` to logits ``(b, k)``; a module is put into eval mode and given back as found.
        x: floats ``(n, ...)`` within the bounds, on the model's device.
        y: int64 ``(n,)``, the labels.
        threat: norm, radius, bounds.
        seed: of the choice of samples, of random points, and of the model's own draws: torch's generators are
            seeded for the duration and given back as found.
        samples: how many correctly classified inputs to look at, at most.
        batch_size: largest batch; None: by input size.

    Raises:
        UnsupportedError: when inputs, labels or outputs make no sense, or samples or batch_size is below 1.
    """
    size = max(_NUMBERS // max(x[:1].numel(), 1), 1) if batch_size is None else batch_size
    if min(samples, size) < 1:
        raise UnsupportedError(f"samples is {samples} and batch_size {batch_size}: both must be at least 1")
    threat = Threat(threat.norm, threat.eps, bounds=threat.bounds)
    check_inputs(x, y, threat)
    size = min(size, samples)
    counting = CountingModel(model)
    with _seeded(seed, x.device):
        with attacking(model):
            subject = _choose(counting, x.detach(), y.to(x.device), threat, seed, samples, size)
        flags = tuple(_flags(model, subject)) if len(subject) else ()
    return Diagnosis(flags, len(subject), counting.forwards, counting.backwards)


def _flags(model: Model, subject: Subject) -> Iterator[Flag]:
    with attacking(model):
        about_outputs = tuple(output_flags(subject))
        random, dependent = (any(flag.name == name for flag in about_outputs) for name in _NO_FUNCTION)
        about_gradients = tuple(gradient_flags(subject, repeatable=not random))
        yield from (*about_outputs, *about_gradients)
        if not (random or dependent or any(flag.name == "no_gradient" for flag in about_gradients)):
            yield from comparison_flags(subject)
    if isinstance(model, nn.Module) and not random:
        yield from mode_flags(model, subject)


def _choose(
    model: CountingModel, x: Tensor, y: Tensor, threat: Threat, seed: int, samples: int, batch_size: int
) -> Subject:
    """The first correctly classified samples in an order that the seed decides."""
    streams = Streams.from_seed(seed, torch.arange(len(x), device=x.device))
    rows = torch.empty(0, dtype=torch.int64, device=x.device)
    with torch.no_grad():
        for part in streams.bits((1,)).squeeze(1).argsort().split(batch_size):
            logits = check_logits(model(x[part]), len(part))
            rows = torch.cat([rows, part[(logits.argmax(1) == y[part]) & logits.isfinite().all(1)]])
            if len(rows) >= samples:
                break
    rows = rows[:samples]
    return Subject.of(model, x[rows], y[rows], threat, streams.select(rows), seed=seed, batch_size=batch_size)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators on the CPU and on ``device``, and gives them back as found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
