"""What a check is, and what the runner hands it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...reports.record import Evidence, Result
from ..samples import Samples
from ..target import Access, Modality, Target


class Progress(Protocol):
    """Where a check reports how far it is; shown with the remaining time."""

    def start(self, label: str, total: float) -> None: ...

    def advance(self, amount: float = 1.0) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the model is loaded from, as the spec names it.

    Attributes:
        code: Python files that build it.
        weights: files and folders that hold weights, or the whole model.
        elsewhere: what is no local file: an installed package, a service.
        trusted: the spec allows formats that can run code.
    """

    code: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    trusted: bool = False


class Context(Protocol):
    """What the runner gives a check besides target and samples."""

    seed: int
    batch_size: int | None
    progress: Progress
    variant: str

    def evidence(self, kind: str, tensors: Mapping[str, Tensor], name: str = "") -> Evidence:
        """Writes tensors as safetensors under ``evidence/<variant>/<check id>[-name].safetensors`` and hashes it."""
        ...

    def read_evidence(self, evidence: Evidence) -> dict[str, Tensor]:
        """The tensors of an evidence file, after its hash was checked."""
        ...

    def samples(self, source: str) -> Samples:
        """Loads further data (a training set) the way ``data.source`` is loaded, path relative to the spec."""
        ...

    def path(self, source: str) -> Path:
        """Where a file that the spec names lies (relative to the spec's folder unless absolute)."""
        ...

    def model_files(self) -> ModelFiles:
        """What the model is loaded from."""
        ...

    def scratch(self, name: str) -> Path:
        """Where unfinished work may be kept between runs, such as a training's checkpoint; no part of the record."""
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that ``verify`` re-checked."""

    what: str
    ok: bool
    detail: str = ""


class Check(BaseModel):
    """Base of all checks: a frozen pydantic config whose ``run`` gives a Result.

    Class attributes describe the check for ``list``, ``show``, the docs and the report.
    ``version`` is part of the cache key: raise it whenever results may change.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image", "text", "tabular"})
    references: ClassVar[tuple[str, ...]] = ()
    standards: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[Mapping[str, str]] = {}
    cost: ClassVar[str] = ""
    version: ClassVar[int] = 1

    id: str = Field(default="", description="Name of this result in gates and report; the check's name when empty.")
    variants: tuple[str, ...] | None = Field(default=None, description="Variants to run on; all when left out.")

    @abstractmethod
    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        """Examines ``target`` on ``samples``."""

    def required(self) -> frozenset[Access]:
        """The access this configuration needs; differs from ``requires`` where it depends on a field."""
        return self.requires

    def files(self) -> tuple[str, ...]:
        """Data the check reads besides ``samples`` (paths as in the spec); their hashes join the cache key."""
        return ()

    def surroundings(self) -> Mapping[str, Any]:
        """What the check takes from the machine unasked, as plain values; it joins the cache key."""
        return {}

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        """Re-checks what ``result`` claims against its evidence and the reloaded model."""
        del target, samples, result, context
        yield from ()


def encoded(target: Target, *sides: Samples, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """All samples as one encoded tensor ``(n, ...)`` and labels int64 ``(n,)``, on the CPU.

    Several data sets come one after the other. Texts are encoded in one call, whoever wrote the tokenizer: it alone
    knows how to pad all of them to one length.
    """
    y = torch.cat([torch.from_numpy(side.labels) for side in sides])
    raws = (raw for side in sides for raw, _ in side.batches(batch_size))
    if target.modality == "text":
        return target.encode(np.concatenate(list(raws))), y
    return torch.cat([target.encode(raw) for raw in raws]), y
