"""Runs an attack over a data set and counts only what it can prove."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from .attack import Attack, AttackOutcome, Model, check_norm
from .errors import UnsupportedError
from .models import CountingModel, Precision, attacking, check_logits
from .search import fooled
from .streams import Streams
from .threat import Threat


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
        progress: called with (samples done, n) after each batch.
        max_forwards: no batch is begun once the attack has passed this many samples forwards.
        max_seconds: no batch is begun after this many seconds.

    Returns:
        The outcome, tensors on the CPU. Samples that a budget left out have ``examined`` false.

    Raises:
        UnsupportedError: when inputs, labels, logits (shape or NaN on clean inputs) or the norm make no sense
            here, or the attack needs what the model does not give.
    """
    check_norm(attack, threat)
    check_inputs(x, y, threat)
    place = _device_of(model, x) if device is None else torch.device(device)
    began = time.monotonic()
    streams = Streams.from_seed(seed, torch.arange(len(x)) if ids is None else ids.cpu())
    counting = CountingModel(model, screened=True, precision=precision, channels_last=channels_last)
    size = BatchSize(_first_batch_size(x, place) if batch_size is None else batch_size, place)

    def out_of_budget() -> bool:
        late = max_seconds is not None and time.monotonic() - began >= max_seconds
        return late or (max_forwards is not None and counting.forwards >= max_forwards)

    with attacking(model):
        clean_logits = _clean_logits(model, x, size, place)
        _check_clean(clean_logits, y)
        found = _Found(x, y.cpu(), threat, clean_logits)
        attackable = found.correct.nonzero().squeeze(1)

        def attack_batch(rows: Tensor) -> None:
            counts = counting.forwards, counting.backwards
            clean, label = x[rows.to(x.device)].to(place), y[rows.to(y.device)].to(place)
            try:
                x_adv = attack(counting, clean, label, threat, generator=streams.select(rows).to(place))
                logits = _verified_logits(model, x_adv)
            except BaseException:  # a batch that is tried again in halves counts once
                counting.forwards, counting.backwards = counts
                raise
            found.keep(rows, x_adv, clean, label, logits, minimal=getattr(attack, "minimal", False))

        done = len(x) - len(attackable)
        for rows in size.batches(attackable, attack_batch, out_of_budget):
            done += len(rows)
            if progress is not None:
                progress(done, len(x))
    return AttackOutcome(
        x_adv=found.x_adv,
        success=found.success,
        distance=found.distance,
        correct=found.correct,
        clean_logits=clean_logits,
        adv_logits=found.adv_logits,
        forwards=counting.forwards,
        backwards=counting.backwards,
        verification_forwards=len(x) + int((found.examined & found.correct).sum()),
        examined=found.examined,
        seconds=time.monotonic() - began,
    )


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

    def keep(self, rows: Tensor, x_adv: Tensor, x: Tensor, y: Tensor, logits: Tensor, *, minimal: bool) -> None:
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


class BatchSize:
    """A batch size that halves, for good, whenever memory runs out."""

    def __init__(self, value: int, device: torch.device) -> None:
        if value < 1:
            raise UnsupportedError(f"batch_size is {value}: it must be at least 1")
        self.value = value
        self.device = device

    def batches(
        self, rows: Tensor, work: Callable[[Tensor], None], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Tensor]:
        """Calls ``work`` on slices of ``rows`` and yields each slice done, until ``stop()`` before a new one."""
        start = 0
        while start < len(rows) and not stop():
            batch = rows[start : start + self.value]
            if self._fits(work, batch):
                start += len(batch)
                yield batch

    def _fits(self, work: Callable[[Tensor], None], batch: Tensor) -> bool:
        try:
            work(batch)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UnsupportedError(
                    "memory runs out even with a single sample: use a smaller model or input"
                ) from error
        else:
            return True
        # Outside the handler, so that the frames holding the batch's tensors are gone.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.value = max(len(batch) // 2, 1)
        return False


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


def _first_batch_size(x: Tensor, device: torch.device) -> int:
    """Batches of two million numbers on a CPU, whose memory is never reported short in time; more on a GPU."""
    on_gpu = device.type == "cuda"
    numbers, most = (2**25, 1024) if on_gpu else (2**21, 256)
    return max(min(numbers // max(x[0].numel(), 1), most), 16)


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in text or "can't allocate" in text
    )
