"""How much a module is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(slots=True)
class Counted:
    """Samples passed through a module; copies made of it meanwhile count too."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def counted(module: nn.Module) -> Iterator[Counted]:
    """Counts what passes through ``module``, forwards and backwards, until the end of the block."""
    count = Counted()

    def on_backward(gradient: Tensor) -> None:
        count.backwards += len(gradient)

    def on_forward(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            count.forwards += len(output)
            if output.requires_grad:
                output.register_hook(on_backward)

    handle = module.register_forward_hook(on_forward)
    try:
        yield count
    finally:
        handle.remove()
