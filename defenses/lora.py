"""Low-rank adapters: train a small addition to each weight instead of the weight (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..attacks.errors import MissingExtraError, UnsupportedError

_NAME = "auditorch"


@dataclass(frozen=True, slots=True)
class LoRA:
    """A scope: adapters on all linear layers and plain 2-d convolutions, and the head itself. Needs the extra ``peft``.

    Args:
        rank: of the added matrices, >= 1.
        alpha: the addition counts ``alpha / rank`` times.
        dropout: of the adapters' inputs, below 1.
        seed: of the adapters' first weights. The additions begin at zero.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise UnsupportedError(
                f"LoRA needs rank >= 1, alpha > 0 and dropout in 0..1, not {self.rank}, {self.alpha} and {self.dropout}"
            )


@contextmanager
def adapted(module: nn.Module, lora: LoRA, head: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Inside, the layers but for ``head`` carry adapters, whose parameters are given; on leaving, these are merged into
    the weights, and the structure is as before.

    Raises:
        MissingExtraError: when peft is not installed.
        UnsupportedError: when no layer can carry one.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("scope lora", "peft") from error
    places = {name: layer for name, layer in _carriers(module) if layer is not head}
    if not places:
        raise UnsupportedError(f"{type(module).__name__} has no layer before its head that could carry a LoRA adapter")
    names = "|".join(name.replace(".", r"\.") for name in places)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] - any number does
        lora_dropout=lora.dropout,
        target_modules=f"({names})",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lora.seed)
        inject_adapter_in_model(config, module, adapter_name=_NAME)
    try:
        yield [
            parameter
            for name in places
            for key, parameter in module.get_submodule(name).named_parameters()
            if key.startswith("lora_")
        ]
    finally:
        for name, layer in places.items():
            carrier: Any = module.get_submodule(name)
            carrier.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, layer)


def _carriers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers an adapter fits. Attention modules of torch read their projections' weights directly: left out."""
    for name, child in module.named_children():
        if type(child) is nn.Linear or (type(child) is nn.Conv2d and child.groups == 1):
            yield prefix + name, child
        elif not isinstance(child, nn.MultiheadAttention):
            yield from _carriers(child, f"{prefix}{name}.")
