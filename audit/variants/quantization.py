"""The variant that computes with 8-bit integers."""

from __future__ import annotations

import copy
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from ...defenses.compression.quantization import Mode, Quantized, calibrate, integer_arithmetic, quantize
from ...reports.record import Metric
from ..checks.base import Context
from ..checks.metrics import rate
from ..samples import Samples
from ..target import Target
from .base import Built, Variant
from .compression import agreement, compared_inputs, predictions
from .footprint import footprint_metrics


class QuantizationVariant(Variant):
    """Weights in int8 by channel, activations in 256 levels whose range is fixed (static) or each input's (dynamic).

    What is audited holds the integers in floats, so that attacks get gradients straight through the rounding; how
    often the int8 arithmetic predicts the same is measured.
    """

    name: ClassVar[str] = "quantization"
    title: ClassVar[str] = "8-bit quantisation"
    references: ClassVar[tuple[str, ...]] = (
        "Jacob et al., Quantization and Training of Neural Networks for Integer-Arithmetic-Only Inference, "
        "arXiv 1712.05877",
        "Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432",
    )

    mode: Mode = Field(default="static", description="static (ranges from `train`) or dynamic (each input's own).")
    train: str = Field(description="Training data: at most 512 of its inputs set the ranges and compare predictions.")

    def files(self) -> tuple[str, ...]:
        return (self.train,)

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        module = copy.deepcopy(target.module)
        count = quantize(module, self.mode)
        x = compared_inputs(target, context, self.train)
        if self.mode == "static":
            calibrate(module, x.split(64))
        module.eval()
        ranges = "measured on training inputs" if self.mode == "static" else "each input's own"
        return Built(
            module=module,
            summary=f"{count} layers on 8-bit integers; ranges of activations {ranges}.",
            metrics=(*_agreements(module, target.module, x), *_integer_footprint(target, samples, module)),
            warnings=tuple(_left_in_floats(module)),
            parameters={"quantised_layers": count},
        )

    def wrap(self, module: nn.Module) -> nn.Module:
        quantize(module, self.mode)
        return module


def _agreements(module: nn.Module, base: nn.Module, x: Tensor) -> tuple[Metric, ...]:
    simulated = predictions(module, x)
    with integer_arithmetic(module):
        deployed = predictions(module, x)
    same = int((simulated == deployed).sum())
    label = "Predicts as the int8 arithmetic does"
    return (
        rate("integer_agreement", same, len(x), label=label, higher_is_better=True),
        agreement(module, base, x, "the target"),
    )


def _integer_footprint(target: Target, samples: Samples, module: nn.Module) -> tuple[Metric, ...]:
    """Time and memory of an answer with int8 products, beside those of the differentiable form."""
    if target.device.type != "cpu":
        return ()  # int8 products need other shapes there
    with integer_arithmetic(module):
        found = footprint_metrics(target, samples, module)
    return tuple(
        metric.model_copy(update={"name": f"integer_{metric.name}", "label": f"{metric.label}, in int8"})
        for metric in found
        if metric.name in ("latency_ms", "peak_memory_bytes")
    )


def _left_in_floats(module: nn.Module) -> list[str]:
    inside = {part for layer in module.modules() if isinstance(layer, Quantized) for part in layer.modules()}
    kinds = {
        type(layer).__name__
        for layer in module.modules()
        if layer not in inside and any(p.is_floating_point() and p.dim() > 1 for p in layer.parameters(recurse=False))
    }
    named = ", ".join(sorted(kinds))
    return [f"These layers stayed in floating point: {named}."] if kinds else []
