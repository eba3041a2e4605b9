"""The variant whose layers are products of two thinner ones."""

from __future__ import annotations

import copy
from typing import ClassVar

from pydantic import Field
from torch import nn

from ...defenses.compression.low_rank import factorize
from ..checks.base import Context
from ..samples import Samples
from ..target import Target
from .base import Built
from .compression import CompressionVariant


class LowRankVariant(CompressionVariant):
    """Replaces each weight by its best approximation of low rank, kept as two factors."""

    name: ClassVar[str] = "low_rank"
    title: ClassVar[str] = "Low-rank factorisation"
    references: ClassVar[tuple[str, ...]] = (
        "Denton et al., Exploiting Linear Structure Within Convolutional Networks, arXiv 1404.0736",
    )

    keep: float = Field(default=0.5, gt=0, lt=1, description="Share of each layer's weights that its factors hold.")

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples  # the audit's data: a variant must not learn from it
        module = copy.deepcopy(target.module)
        count = factorize(module, self.keep)
        text = f"{count} layers became products of two thinner ones that hold {100 * self.keep:g} % of the weights."
        return self.finished(module, text, target, context, parameters={"factorised_layers": count})

    def wrap(self, module: nn.Module) -> nn.Module:
        factorize(module, self.keep)
        return module
