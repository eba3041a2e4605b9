"""The variant that filters its inputs first."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, model_validator
from torch import nn

from ...defenses.preprocessing import BitDepth, Jpeg, Median, Preprocessed, Step, TotalVariation
from ..checks.base import Context
from ..samples import Samples
from ..target import Target
from .base import Built, Variant
from .compression import need_images


class PreprocessingVariant(Variant):
    """Puts filters before the target, in the order of the options; attacks go through them (BPDA)."""

    name: ClassVar[str] = "preprocessing"
    title: ClassVar[str] = "Input preprocessing"
    references: ClassVar[tuple[str, ...]] = (
        "Dziugaite et al., A Study of the Effect of JPG Compression on Adversarial Images, arXiv 1608.00853",
        "Xu et al., Feature Squeezing, arXiv 1704.01155",
        "Guo et al., Countering Adversarial Images Using Input Transformations, arXiv 1711.00117",
        "Athalye et al., Obfuscated Gradients Give a False Sense of Security, arXiv 1802.00420",
    )

    bit_depth: int | None = Field(default=None, ge=1, le=8, description="Bits left of each value.")
    median: int | None = Field(default=None, ge=2, description="Side of the median filter's window.")
    total_variation: float | None = Field(default=None, gt=0, description="Weight of the total variation.")
    jpeg: int | None = Field(default=None, ge=1, le=100, description="Quality of a JPEG compression.")

    @model_validator(mode="after")
    def _something(self) -> PreprocessingVariant:
        if not any(True for _ in self._filters()):
            raise ValueError("name at least one filter: bit_depth, median, total_variation or jpeg")
        return self

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        del samples, context
        need_images(target, "preprocessing")
        module = self.wrap(copy.deepcopy(target.module)).eval()
        named = ", then ".join(str(step) for step in self._filters())
        return Built(
            module=module,
            summary=f"The target behind {named}.",
            warnings=("Gradients of the filters are approximated; where that misleads attacks, `auto` says so.",),
        )

    def wrap(self, module: nn.Module) -> nn.Module:
        return Preprocessed(module, tuple(self._filters()))

    def _filters(self) -> Iterator[Step]:
        if self.bit_depth is not None:
            yield BitDepth(self.bit_depth)
        if self.median is not None:
            yield Median(self.median)
        if self.total_variation is not None:
            yield TotalVariation(self.total_variation)
        if self.jpeg is not None:
            yield Jpeg(self.jpeg)
