"""The layers that compression works on, and putting others in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from ...attacks.errors import UnsupportedError

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_WHOLE = (nn.MultiheadAttention,)
"""Modules that read their parts' weights themselves, so that the parts cannot be replaced."""


def weighted(module: nn.Module) -> Iterator[tuple[str, Weighted]]:
    """Every linear and convolutional layer with its name, each once."""
    for name, layer in module.named_modules():
        if isinstance(layer, WEIGHTED):
            yield name, layer


def replaced(module: nn.Module, choose: Callable[[nn.Module], nn.Module | None]) -> int:
    """Puts ``choose(layer)`` in the place of each layer for which it is not None; how many were replaced.

    A layer used in several places is replaced by one new layer in all of them.

    Raises:
        UnsupportedError: when ``module`` is itself such a layer: there is no place to put another.
    """
    if choose(module) is not None:
        raise UnsupportedError(f"the model is a single {type(module).__name__}: wrap it in nn.Sequential")
    known: dict[nn.Module, nn.Module] = {}
    _replace_in(module, choose, known)
    return len(known)


def _replace_in(module: nn.Module, choose: Callable[[nn.Module], nn.Module | None], known: dict) -> None:
    if isinstance(module, _WHOLE):
        return
    for name, child in list(module.named_children()):
        new = known.get(child) or choose(child)
        if new is None:
            _replace_in(child, choose, known)
        else:
            known[child] = new
            setattr(module, name, new)


def share(name: str, value: float) -> float:
    """``value`` when it lies strictly between 0 and 1.

    Raises:
        UnsupportedError: otherwise.
    """
    if not 0 < value < 1:
        raise UnsupportedError(f"{name} is {value}: it is a share above 0 and below 1")
    return value


def matrix(weight: Tensor) -> Tensor:
    """A layer's weight with one row per output: ``(outputs, everything else)``."""
    return weight.detach().flatten(1)
