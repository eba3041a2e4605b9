"""What a label-only attacker brings along: a surrogate model, and inputs to start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ...attacks.surrogate import extract_surrogate
from ...reports.record import Metric
from ..errors import ModelError
from ..loading.python_factory import load_factory
from ..loading.weights import load_weights, read_weights
from .base import Context, encoded
from .evasion_search import Subject, module_logits
from .metrics import plain, rate
from .outputs import spaced

_STARTS = 20


class SurrogateSpec(BaseModel):
    """Where the surrogate comes from: a model of the attacker's own, or a student trained by asking the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factory: str | None = Field(
        default=None,
        description="Python that builds it: file.py:callable beside the spec, or module:callable. It takes inputs as "
        "the attack perturbs them: images 0..1, before any normalisation.",
    )
    weights: str | None = Field(default=None, description="Its weights: .safetensors, or .pt behind the scan.")
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the factory.")
    extract: int | None = Field(
        default=None, ge=10, description="Train a student with so many queries of the model instead."
    )
    data: str | None = Field(
        default=None, description="Inputs that the attacker asks about; the attacked ones when left out."
    )
    labels_only: bool = Field(default=True, description="The student learns from predicted classes, not scores.")

    @model_validator(mode="after")
    def _one_origin(self) -> SurrogateSpec:
        if (self.factory is None) == (self.extract is None):
            raise ValueError("give exactly one of factory and extract")
        if self.factory is None and (self.weights or self.arguments):
            raise ValueError("weights and arguments belong to a factory")
        if self.factory is not None and self.data is not None:
            raise ValueError("data belongs to extract")
        return self

    def files(self) -> Iterator[str]:
        """Files that the surrogate is made from."""
        place = (self.factory or "").rpartition(":")[0]
        yield from (name for name in (self.weights, self.data) if name)
        if place.endswith(".py"):
            yield place


@dataclass(frozen=True, slots=True)
class Built:
    """A surrogate on the target's device, what it cost, and how far it agrees with the target."""

    module: nn.Module
    queries: int
    agree: int
    n: int

    def metrics(self) -> Iterator[Metric]:
        yield plain(
            "surrogate_queries",
            float(self.queries),
            self.n,
            label="Model evaluations to train the surrogate",
            unit="passes",
            higher_is_better=None,
        )
        label = "Agreement of surrogate and model on the attacked inputs"
        yield rate("surrogate_agreement", self.agree, self.n, label=label, higher_is_better=None)


def build_surrogate(spec: SurrogateSpec, subject: Subject, context: Context) -> Built:
    """The surrogate that the spec asks for.

    Raises:
        ModelError: when it cannot be built, or does not give one logit for each class.
        UnsafeModelError: when the weights' file could run code.
    """
    target, k = subject.target, len(subject.target.classes)
    if spec.factory is not None:
        module, queries = _loaded(spec, context), 0
        module = module.to(target.device).eval()
    else:
        assert spec.extract is not None
        x = subject.x if spec.data is None else encoded(target, context.samples(spec.data))[0]
        student = extract_surrogate(
            target.module,
            x.to(target.device),
            queries=spec.extract,
            labels_only=spec.labels_only,
            bounds=target.bounds,
            generator=torch.Generator().manual_seed(context.seed),
        )
        module, queries = student.module, student.queries
    with torch.no_grad():
        try:
            said = torch.cat([module(part.to(target.device)).float().cpu() for part in subject.x.split(256)])
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(f"the surrogate fails on the attacked inputs: {str(error).splitlines()[0]}") from error
    if said.dim() != 2 or said.shape[1] != k:
        raise ModelError(f"the surrogate gives {tuple(said.shape)}: one logit for each of the {k} classes is needed")
    own = module_logits(target, subject.x, None)
    return Built(module, queries, int((said.argmax(1) == own.argmax(1)).sum()), len(said))


def _loaded(spec: SurrogateSpec, context: Context) -> nn.Module:
    assert spec.factory is not None
    module = load_factory(spec.factory, context.path("."), ModelError)(spec.arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec.factory} gives a {type(module).__name__}, not an nn.Module")
    if spec.weights is not None:
        load_weights(module, read_weights(context.path(spec.weights)), spec.weights)
    return module


def start_inputs(source: str, subject: Subject, context: Context) -> Tensor:
    """At most twenty inputs ``(m, ...)`` of a data set, as many of each class as of any other."""
    samples = context.samples(source)
    order = np.argsort(samples.labels, kind="stable")
    return encoded(subject.target, spaced(samples.select(order), _STARTS))[0]
