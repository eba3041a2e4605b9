"""How many samples go through the model at a time: as many as fit, in sizes from a short list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .errors import UnsupportedError


def bucket(n: int) -> int:
    """The smallest allowed batch size >= n: at most four sizes between successive powers of two."""
    if n <= 8:
        return 8 if n else 0
    unit = 2 ** max(math.ceil(math.log2(n)) - 3, 0)
    return math.ceil(n / unit) * unit


def first_batch_size(x: Tensor, device: torch.device) -> int:
    """Batches of two million numbers on a CPU, whose memory is never reported short in time; more on a GPU."""
    on_gpu = device.type == "cuda"
    numbers, most = (2**25, 1024) if on_gpu else (2**21, 256)
    return max(min(numbers // max(x[0].numel(), 1), most), 16)


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


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in text or "can't allocate" in text
    )
