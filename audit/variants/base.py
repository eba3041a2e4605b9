"""What a variant is: the model after a defense, a compression or a retraining."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ...reports.record import Figure, Metric
from ..checks.base import Context
from ..recipe import Recipe
from ..samples import Samples
from ..target import Target


@dataclass(frozen=True, slots=True)
class Built:
    """A finished variant: its module and what the record says of it."""

    module: nn.Module
    summary: str
    metrics: tuple[Metric, ...] = ()
    figures: tuple[Figure, ...] = ()
    warnings: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Variant(BaseModel):
    """Base of all variants: a frozen pydantic config whose ``build`` gives a new module.

    ``build`` must leave ``target.module`` as it was (work on a copy).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    title: ClassVar[str]
    references: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    exported: ClassVar[bool] = False
    """Whether a run leaves its weights and a card under ``export/``; ``auditorch export`` does it for any."""

    id: str = Field(default="", description="Name of the variant in gates and report; the kind when empty.")

    @abstractmethod
    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        """The variant of ``target``. ``samples`` is the audit's test data: use it for nothing but shapes."""

    def files(self) -> tuple[str, ...]:
        """Data the variant reads (paths as in the spec); their hashes join the cache key."""
        return ()

    def surroundings(self) -> Mapping[str, Any]:
        """What the variant takes from the machine unasked, as plain values; it joins the cache key."""
        return {}

    def expanded(self) -> tuple[Variant, ...]:
        """The variants that one entry of the spec stands for: itself, unless an option lists several values."""
        return (self,)

    def as_built(self, parameters: Mapping[str, Any]) -> Variant:
        """What ``build`` settled on, by the recorded ``parameters``: itself, unless it chose among several."""
        del parameters
        return self

    def wrap(self, module: nn.Module) -> nn.Module:
        """Turns a copy of the base module into the structure whose state dict ``build`` produced.

        Needed to reload a variant's saved weights when the treatment changes layers (BatchNorm to GroupNorm).
        """
        return module

    def recipe(self) -> Recipe | None:
        """How the weights were trained from the base's, for attackers who train models of their own in the same way;
        None where they were not trained."""
        return None

    def deployed(self, target: Target) -> Target:
        """The target around this variant's module, where more than the module is another: what it is given, classes."""
        return target
