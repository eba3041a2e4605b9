"""Runs an attack over a data set and counts only what it can prove."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .attack import Attack, AttackOutcome, Model, Traced, check_norm
from .batching import BatchSize, first_batch_size
from .errors import UnsupportedError
from .models import Compiled, CountingModel, Precision, attacking, check_logits
from .search import fooled
from .shards import ShardStore
from .streams import Streams
from .threat import Threat

Shard = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
"""Inputs ``(n, ...)``, labels ``(n,)`` and, as far as they matter, ids ``(n,)``."""


class Progress(Protocol):
    """Told after each batch how many of the samples are done."""

    def __call__(self, done: int, total: int, /) -> None: ...


def evaluate(
    attack: Attack,
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    ids: Tensor | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    channels_last: bool = False,
    compile: bool | str = False,  # noqa: A002 - the name that torch gives it
    progress: Progress | None = None,
    max_forwards: int | None = None,
    max_seconds: float | None = None,
) -> AttackOutcome:
    """Attacks each sample that the model gets right, and verifies each success on the original model in float32.

    Inputs already misclassified (targeted: already in their target class) count as fooled at distance 0 and are not
    attacked. Random draws belong to (``seed``, sample id), so the result depends on neither order nor batch size
    except through floating point: kernels may round differently for another batch size, and an attack that
    follows gradient signs can magnify that. Models that are themselves random are not repeatable.

    Args:
        attack: for example ``PGD(steps=40)``.
        model: maps ``(b, ...)`` within the threat's bounds to logits ``(b, k)``; an ``nn.Module`` is put into eval mode
            and given back as found.
        x: floats ``(n, ...)`` within the bounds, on any device; batches move to ``device``.
        y: int64 ``(n,)``, the labels; for a targeted threat the classes to reach.
        threat: norm, radius, bounds.
        seed: of the random streams.
        ids: int64 ``(n,)``, numbers that stay with the samples; None: their positions.
        batch_size: largest batch; None: by device and input size. Halved for good when memory runs out.
        device: where to attack; None: where the model's parameters are, else where ``x`` is.
        precision: ``bfloat16`` lets the attack search under autocast; verification is in float32 all the same.
        channels_last: lets the attack call the model with channels-last images.
        compile: lets the attack call the model through ``torch.compile``, batches filled up to a few sizes; a string
            names the backend. Verification is eager all the same.
        progress: called with (samples done, n) after each batch.
        max_forwards: no batch is begun once the attack has passed this many samples forwards.
        max_seconds: no batch is begun after this many seconds.

    Returns:
        The outcome, tensors on the CPU. Samples that a budget left out have ``examined`` false.

    Raises:
        UnsupportedError: when inputs, labels, logits (shape or NaN on clean inputs) or the norm make no sense
            here, or the attack needs what the model does not give.
    """
    shard = (x, y) if ids is None else (x, y, ids)
    return next(
        evaluate_stream(
            attack,
            model,
            [shard],
            threat,
            seed=seed,
            batch_size=batch_size,
            device=device,
            precision=precision,
            channels_last=channels_last,
            compile=compile,
            progress=progress,
            max_forwards=max_forwards,
            max_seconds=max_seconds,
        )
    )


def evaluate_stream(
    attack: Attack,
    model: Model,
    shards: Iterable[Shard],
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    channels_last: bool = False,
    compile: bool | str = False,  # noqa: A002
    progress: Progress | None = None,
    max_forwards: int | None = None,
    max_seconds: float | None = None,
    store: ShardStore | None = None,
) -> Generator[AttackOutcome, None, None]:
    """:func:`evaluate` over data that need not fit in memory: one outcome for each shard, in order.

    Only the shard at hand is held. :meth:`AttackOutcome.merge` joins the outcomes, without the inputs if so wished;
    what comes out does not depend on how the samples were cut into shards.

    Args:
        shards: (inputs, labels) or (inputs, labels, ids), as for :func:`evaluate`; read one at a time. Without ids
            samples are numbered through over all shards.
        progress: called with (samples done, n) of the shard at hand.
        max_forwards, max_seconds: for all shards together. Shards after the end of a budget are not begun.
        store: keeps the outcome of each finished shard; one that is already there is read, not run again.
    """
    check_norm(attack, threat)
    engine, number = None, 0
    for shard in shards:
        x, y = shard[0], shard[1]
        check_inputs(x, y, threat)
        ids = shard[2].cpu() if len(shard) == 3 else torch.arange(number, number + len(x))
        number += len(x)
        if engine is None:
            place = _device_of(model, x) if device is None else torch.device(device)
            size = BatchSize(first_batch_size(x, place) if batch_size is None else batch_size, place)
            caller = Compiled(model, None if compile is True else compile) if compile else model
            counting = CountingModel(caller, screened=True, precision=precision, channels_last=channels_last)
            budget = _Budget(max_forwards, None if max_seconds is None else time.monotonic() + max_seconds)
            engine = _Engine(attack, model, counting, threat, seed, size, budget, progress)
        elif engine.budget.spent(engine.counting):
            return
        key = None if store is None else store.key(attack, model, threat, (seed, precision), x, y, ids)
        outcome = None if store is None or key is None else store.load(key)
        if outcome is None:
            outcome = engine.run(x, y, ids)
            if store is not None and key is not None and bool(outcome.examined.all()):
                store.save(key, outcome)
        yield outcome


@dataclass(frozen=True, slots=True)
class _Budget:
    """When to begin nothing new."""

    forwards: int | None
    deadline: float | None

    def spent(self, counting: CountingModel) -> bool:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or (self.forwards is not None and counting.forwards >= self.forwards)


@dataclass(frozen=True, slots=True)
class _Engine:
    """All that stays the same from shard to shard; passes add up in ``counting``."""

    attack: Attack
    model: Model
    counting: CountingModel
    threat: Threat
    seed: int
    size: BatchSize
    budget: _Budget
    progress: Progress | None

    def run(self, x: Tensor, y: Tensor, ids: Tensor) -> AttackOutcome:
        began, place, counting = time.monotonic(), self.size.device, self.counting
        before = counting.forwards, counting.backwards
        streams = Streams.from_seed(self.seed, ids)
        with attacking(self.model), counting.model.caching() if isinstance(counting.model, Compiled) else nullcontext():
            clean_logits = _clean_logits(self.model, x, self.size, place)
            _check_clean(clean_logits, y)
            found = _Found(x, y.cpu(), self.threat, clean_logits)

            def attack_batch(rows: Tensor) -> None:
                counts = counting.forwards, counting.backwards
                clean, label = x[rows.to(x.device)].to(place), y[rows.to(y.device)].to(place)
                try:
                    x_adv, spent = self._attack(clean, label, streams.select(rows).to(place))
                    logits = _verified_logits(self.model, x_adv)
                except BaseException:  # a batch that is tried again in halves counts once
                    counting.forwards, counting.backwards = counts
                    raise
                minimal = getattr(self.attack, "minimal", False)
                found.keep(rows, x_adv, clean, label, logits, spent, minimal=minimal)

            attackable = found.correct.nonzero().squeeze(1)
            done = len(x) - len(attackable)
            for rows in self.size.batches(attackable, attack_batch, lambda: self.budget.spent(counting)):
                done += len(rows)
                if self.progress is not None:
                    self.progress(done, len(x))
        return AttackOutcome(
            x_adv=found.x_adv,
            success=found.success,
            distance=found.distance,
            correct=found.correct,
            clean_logits=clean_logits,
            adv_logits=found.adv_logits,
            forwards=counting.forwards - before[0],
            backwards=counting.backwards - before[1],
            verification_forwards=len(x) + int((found.examined & found.correct).sum()),
            examined=found.examined,
            seconds=time.monotonic() - began,
            unit=self.attack.unit if isinstance(self.attack, Traced) else None,
            spent=found.spent,
        )

    def _attack(self, x: Tensor, y: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        """The attack's points ``(n, ...)``, and what each sample took ``(n,)``; 0 where it does not say."""
        if isinstance(self.attack, Traced):
            return self.attack.trace(self.counting, x, y, self.threat, generator=streams)
        return self.attack(self.counting, x, y, self.threat, generator=streams), torch.zeros_like(y)


class _Found:
    """What is known of each sample, on the CPU; misclassified samples are fooled from the start."""

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, clean_logits: Tensor) -> None:
        self.threat = threat
        self.success = fooled(clean_logits, y, targeted=threat.targeted)
        self.correct = ~self.success
        self.examined = self.success.clone()
        self.x_adv = x.detach().cpu().clone()
        self.adv_logits = clean_logits.clone()
        self.distance = torch.where(self.success, 0.0, float("inf"))
        self.spent = torch.zeros_like(y)

    def keep(
        self, rows: Tensor, x_adv: Tensor, x: Tensor, y: Tensor, logits: Tensor, spent: Tensor, *, minimal: bool
    ) -> None:
        """Keeps what stands up: wrong prediction, inside the bounds, and inside the ball unless ``minimal``."""
        inside = self.threat.contains(x_adv, x)
        valid = self.threat.in_bounds(x_adv) if minimal else inside
        proven = (fooled(logits, y, targeted=self.threat.targeted) & valid).cpu()
        hits = rows[proven]
        self.examined[rows] = True
        self.success[rows] = proven & inside.cpu()
        self.x_adv[hits] = x_adv.detach().cpu()[proven]
        self.adv_logits[hits] = logits.cpu()[proven]
        self.distance[hits] = self.threat.distance(x_adv, x).detach().float().cpu()[proven]
        self.spent[rows] = spent.cpu()


def check_inputs(x: Tensor, y: Tensor, threat: Threat) -> None:
    """Refuses inputs and labels that no attack can work on.

    Raises:
        UnsupportedError: saying what is wrong and what is expected.
    """
    if not x.is_floating_point():
        raise UnsupportedError(f"inputs are {x.dtype}: attacks need floats within {threat.bounds}")
    if x.dim() < 2 or y.shape != x.shape[:1]:
        raise UnsupportedError(
            f"inputs have shape {tuple(x.shape)} and labels {tuple(y.shape)}: expected (n, ...), (n,)"
        )
    if y.dtype != torch.int64:
        raise UnsupportedError(f"labels are {y.dtype}: expected int64 class numbers")
    if len(x) == 0:
        raise UnsupportedError("there are no samples to attack")
    wrong = int((~threat.in_bounds(x)).sum())
    if wrong:
        low, high = float(x.min()), float(x.max())
        raise UnsupportedError(
            f"{wrong} of {len(x)} inputs leave the bounds {threat.bounds} (they span {low:g} to {high:g}) or hold NaN: "
            "scale them, or state their bounds in the threat"
        )


def _check_clean(logits: Tensor, y: Tensor) -> None:
    k = logits.shape[1]
    if int(y.min()) < 0 or int(y.max()) >= k:
        raise UnsupportedError(f"labels span {int(y.min())} to {int(y.max())}, but the model has classes 0 to {k - 1}")
    broken = int(logits.isnan().any(1).sum())
    if broken:
        raise UnsupportedError(
            f"the model gives NaN logits on {broken} of {len(logits)} clean inputs, so that robustness has no meaning "
            "there: mend the model, or leave these inputs out"
        )


def _clean_logits(model: Model, x: Tensor, size: BatchSize, device: torch.device) -> Tensor:
    parts: list[Tensor] = []
    rows = torch.arange(len(x))
    for _ in size.batches(rows, lambda batch: parts.append(_verified_logits(model, x[batch].to(device)).cpu())):
        pass
    return torch.cat(parts)


@torch.no_grad()
def _verified_logits(model: Model, x: Tensor) -> Tensor:
    """Float32 logits of the original model, uncompiled and outside any autocast."""
    original = getattr(model, "_orig_mod", model)
    with torch.autocast(x.device.type, enabled=False):
        return check_logits(original(x), len(x)).detach().float()


def _device_of(model: Model, x: Tensor) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return x.device if parameter is None else parameter.device
