"""The variant without its smallest weights, channels or attention heads."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from ...defenses.compression.channel_pruning import prune_channels
from ...defenses.compression.head_pruning import prune_heads
from ...defenses.compression.pruning import prune_weights, sparsity, zeros_kept
from ...reports.record import Metric
from ..checks.base import Context
from ..samples import Samples
from ..target import Target
from .base import Built
from .compression import CompressionVariant


class PruningVariant(CompressionVariant):
    """Removes what is smallest: weights (set to zero), channels (the network shrinks), or attention heads (silenced).

    Only channels make the model smaller and faster as it stands; zeros need sparse storage and kernels for that.
    """

    name: ClassVar[str] = "pruning"
    title: ClassVar[str] = "Pruning"
    references: ClassVar[tuple[str, ...]] = (
        "Han et al., Learning both Weights and Connections for Efficient Neural Networks, arXiv 1506.02626",
        "Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710",
        "Michel et al., Are Sixteen Heads Really Better than One?, arXiv 1905.10650",
    )

    structure: Literal["weights", "channels", "heads"] = Field(
        default="weights", description="weights (of all layers together), channels (of each layer), or heads."
    )
    amount: float = Field(default=0.5, gt=0, lt=1, description="Share that is removed.")

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        module, share = copy.deepcopy(target.module), f"{100 * self.amount:g} %"
        match self.structure:
            case "weights":
                masks = prune_weights(module, self.amount)
                return self.finished(
                    module,
                    f"The {share} smallest weights were set to zero; tensors keep their size.",
                    target,
                    context,
                    metrics=_sparsity,
                    holding=zeros_kept(module, masks),
                )
            case "channels":
                changed = prune_channels(module, self.amount)
                text = f"The {share} of channels with the smallest weights were removed from {len(changed)} layers."
                channels = {name: list(counts) for name, counts in changed.items()}
                parameters = {"channels": channels}
                return self.finished(module, text, target, context, parameters=parameters)
            case "heads":
                heads = {name: list(gone) for name, gone in prune_heads(module, self.amount).items()}
                count = sum(map(len, heads.values()))
                return self.finished(
                    module,
                    f"The {count} attention heads that can add least were silenced; tensors keep their size.",
                    target,
                    context,
                    metrics=_sparsity,
                    parameters={"heads": heads},
                    warnings=_may_return(self),
                )

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.structure == "channels":
            prune_channels(module, self.amount)
        return module


def _sparsity(module: nn.Module) -> tuple[Metric, ...]:
    return (Metric(name="sparsity", value=sparsity(module), unit="rate", label="Share of weights that are zero"),)


def _may_return(variant: PruningVariant) -> tuple[str, ...]:
    if variant.train is None or not variant.epochs:
        return ()
    return ("Training after the cut may bring silenced heads back: their zeros are not held.",)
