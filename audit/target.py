"""The model under audit together with its preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from .recipe import Recipe

Modality = Literal["image", "text", "tabular"]
Access = Literal["gradients", "scores", "labels"]


class Encode(Protocol):
    """Turns a batch of raw inputs into the tensor that attacks perturb, within the target's bounds."""

    def __call__(self, raw: Any, /) -> Tensor: ...


def _unchanged(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True, slots=True)
class Target:
    """A model as it will be used: raw input in, logits out.

    Attacks work in the space between the two steps: ``encode`` (layout and scale, images to float32 ``(n, c, h, w)``
    in ``bounds``) and ``module`` (everything after, mean/std normalisation included).

    Attributes:
        module: maps encoded inputs to float32 logits ``(n, k)``; in eval mode on ``device``.
        encode: raw batch -> encoded float32 tensor on the CPU.
        classes: names of the k classes.
        access: what an attacker of this target has; white-box checks need ``gradients``.
        sha256: hash of weights, factory source, arguments and preprocessing; part of every cache key.
        warnings: what a reader must know about how the model was loaded.
        base: the target that a variant was made from; None for the model as given.
        wrap: turns a copy of the base's module into the structure of the variant.
        recipe: how the variant was trained; None where it was not, and for the model as given.
    """

    module: nn.Module
    encode: Encode
    classes: tuple[str, ...]
    modality: Modality
    bounds: tuple[float, float]
    device: torch.device
    sha256: str
    access: frozenset[Access] = frozenset({"gradients", "scores", "labels"})
    warnings: tuple[str, ...] = ()
    base: Target | None = None
    wrap: Callable[[nn.Module], nn.Module] = _unchanged
    recipe: Recipe | None = None

    @torch.no_grad()
    def logits(self, raw: Any) -> Tensor:
        """Logits ``(n, k)`` on the CPU for a batch of raw inputs."""
        return self.module(self.encode(raw).to(self.device)).float().cpu()

    def with_module(
        self,
        module: nn.Module,
        sha256: str,
        wrap: Callable[[nn.Module], nn.Module] = _unchanged,
        recipe: Recipe | None = None,
    ) -> Target:
        """The same preprocessing and classes around another module (a variant)."""
        return replace(self, module=module, sha256=sha256, base=self.base or self, wrap=wrap, recipe=recipe)
