"""Small audits for tests: a spec on disk, checks and variants that say what they did."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from auditorch.audit.checks.base import Check, Claim, Context
from auditorch.audit.errors import ModelError
from auditorch.audit.samples import Samples
from auditorch.audit.spec import GateSpec, Spec, load_spec
from auditorch.audit.target import Access, Target
from auditorch.audit.variants.base import Built, Variant
from auditorch.reports.record import AuditRecord, Metric, Result
from safetensors.torch import save_file
from torch import nn

from .fakes import linear_model, toy_samples

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
"""


def write_project(folder: Path, n: int = 40) -> Path:
    """A model, its weights and data on disk, and a spec that audits its performance."""
    samples = toy_samples(n)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    save_file(linear_model().state_dict(), folder / "model.safetensors")
    np.savez(folder / "test.npz", x=samples.inputs[np.arange(n)], y=samples.labels)
    (folder / "audit.yaml").write_text(
        "version: 1\nname: toy\nmodel: {factory: model.py:build, weights: model.safetensors}\n"
        "data: {source: test.npz}\nchecks: [performance]\ngates:\n  - performance.accuracy >= 0.8\n"
    )
    return folder / "audit.yaml"


def toy_spec(folder: Path, *checks: Check, variants: tuple[Variant, ...] = (), gates: tuple[str, ...] = ()) -> Spec:
    """The project's spec with other checks, variants and gates."""
    if not (folder / "audit.yaml").exists():
        write_project(folder)
    spec = load_spec(folder / "audit.yaml")
    judged = tuple(GateSpec(expression=gate) for gate in gates)
    return replace(spec, checks=checks or spec.checks, variants=variants, gates=judged)


def without_times(record: AuditRecord) -> dict[str, object]:
    """A record's content but for when it was made and how long that took."""
    content = record.model_dump(mode="json", exclude={"created", "seconds"})
    for variant in content["variants"]:
        del variant["seconds"]
        variant["metrics"] = [metric for metric in variant["metrics"] if metric["unit"] not in ("s", "ms")]
        for result in variant["results"]:
            del result["seconds"]
    return content


class Draws(Check):
    """Draws from the global generators, as libraries do, and notes in a file that it ran."""

    name: ClassVar[str] = "draws"
    title: ClassVar[str] = "Draws"
    question: ClassVar[str] = "What is drawn?"
    metrics: ClassVar[Mapping[str, str]] = {"share": "A number that depends on the seed."}

    log: str = ""
    scale: float = 1.0
    train: str = ""

    def files(self) -> tuple[str, ...]:
        return (self.train,) if self.train else ()

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        self.note(context)
        drawn = torch.rand(8) * self.scale + float(np.random.rand()) * 1e-6
        logits = target.logits(samples.inputs[np.arange(4)])
        evidence = context.evidence("scores", {"drawn": drawn, "logits": logits})
        share = min(float(drawn.mean()), 1.0)
        metric = Metric(name="share", value=share, ci_low=share / 2, ci_high=1.0, n=8, unit="rate", method="wilson")
        return Result(
            check=self.name, id=self.id, title=self.title, status="ok", metrics=(metric,), evidence=(evidence,)
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        recorded = context.read_evidence(result.evidence[0])
        logits = target.logits(samples.inputs[np.arange(4)])
        yield Claim("the model answers as recorded", torch.allclose(logits, recorded["logits"]))
        found = result.metric("share")
        assert found is not None
        assert found.value is not None
        yield Claim("the share follows", abs(float(recorded["drawn"].mean()) - found.value) < 1e-6)

    def note(self, context: Context) -> None:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{context.variant}:{self.id}\n")


class Killed(Draws):
    """Kills its process in the middle, unless the file named by ``once`` is there already."""

    name: ClassVar[str] = "killed"
    once: str = ""

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        if not Path(self.once).exists():
            Path(self.once).write_text("")
            context.evidence("scores", {"half": torch.zeros(3)})
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(target, samples, context)


class Breaks(Check):
    """Raises what it is told to raise."""

    name: ClassVar[str] = "breaks"
    title: ClassVar[str] = "Breaks"
    question: ClassVar[str] = "Does it break?"

    error: str = "plain"

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        target.module.train()
        for parameter in target.module.parameters():
            parameter.requires_grad_(False)
        match self.error:
            case "audit":
                raise ModelError("the model said no")
            case "exit":
                raise SystemExit(4)
            case "interrupt":
                raise KeyboardInterrupt
            case _:
                raise ZeroDivisionError("by nothing")


class Hungry(Draws):
    """Runs out of memory above a batch size, in one of the ways in which libraries say so."""

    name: ClassVar[str] = "hungry"
    fits: int = 16
    how: str = "cuda"

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        context.evidence("scores", {"partial": torch.zeros(1)}, name="partial")
        if context.batch_size is None or context.batch_size > self.fits:
            if self.how == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory")
            if self.how == "cpu":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            raise MemoryError
        return super().run(target, samples, context)


class NeedsGradients(Draws):
    """Asks for more than some targets give."""

    name: ClassVar[str] = "needs_gradients"
    requires: ClassVar[frozenset[Access]] = frozenset({"gradients"})


class Shifted(Variant):
    """Adds a constant to the last bias; with ``wrapped`` inside a structure of its own."""

    name: ClassVar[str] = "shifted"
    title: ClassVar[str] = "Shifted bias"

    by: float = 1.0
    log: str = ""
    fails: bool = False

    def build(self, target: Target, samples: Samples, context: Context) -> Built:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"build {self.id}\n")
        if self.fails:
            raise RuntimeError("diverged")
        module = self.wrap(copy.deepcopy(target.module))
        with torch.no_grad():
            bias = module.get_parameter("0.1.bias")
            bias += self.by
        return Built(module=module, summary=f"Shifted by {self.by}.")

    def wrap(self, module: nn.Module) -> nn.Module:
        return nn.Sequential(module)
