"""One private training on several processes (torchrun): the same Poisson sample, shared out, and noise once.

``DistributedDataParallel`` would average gradients that were never clipped, and samplers made for it give each process
a batch of fixed size. Here every process draws the same sample from the same key and takes every k-th record of it;
clipped sums are added up, the noise is put in by the first process alone, and all take the same step.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from .randomness import Streams


class Ranks:
    """The processes of ``torch.distributed``, if it is in use; a single one otherwise."""

    def __init__(self) -> None:
        active = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if active else 0
        self.count = distributed.get_world_size() if active else 1

    @property
    def first(self) -> bool:
        """Whether this process puts in the noise and writes files."""
        return self.rank == 0

    def share(self, index: Tensor) -> Tensor:
        """This process's part of a sample."""
        return index[self.rank :: self.count]

    def add_up(self, *tensors: Tensor) -> None:
        """Replaces each tensor by its sum over the processes."""
        if self.count > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def common(self, streams: Streams, device: torch.device) -> Streams:
        """The first process's key, for all."""
        if self.count == 1:
            return streams
        key = torch.tensor(list(streams.key), dtype=torch.uint8, device=device)
        distributed.broadcast(key, 0)
        return Streams(bytes(key.tolist()))

    def same_start(self, tensors: list[Tensor]) -> None:
        """Gives every process the first one's weights."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.data, 0)
