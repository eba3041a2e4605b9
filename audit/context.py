"""What the runner hands to checks and variants: evidence, further data, a seed, progress."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..reports.record import Evidence
from .checks.base import ModelFiles, Progress
from .errors import OutputError, UnsupportedError
from .loading.data import load_samples
from .samples import Samples
from .spec import Spec
from .storage import write_atomic


@dataclass(frozen=True, slots=True)
class Sources:
    """Further data of a spec, each read once."""

    spec: Spec
    classes: tuple[str, ...]
    loaded: dict[str, Samples] = field(default_factory=dict)

    def __call__(self, source: str) -> Samples:
        if source not in self.loaded:
            self.loaded[source] = load_samples(self.spec, source, self.classes)
        return self.loaded[source]


@dataclass(slots=True)
class RunContext:
    """The context of one check or variant of a run.

    Attributes:
        directory: the output folder.
        owner: name of the evidence files: the id of the check, ``model`` for a variant.
        written: what was written so far.
    """

    directory: Path
    owner: str
    seed: int
    batch_size: int | None
    progress: Progress
    variant: str
    sources: Sources
    written: list[Evidence] = field(default_factory=list)

    def evidence(self, kind: str, tensors: Mapping[str, Tensor], name: str = "") -> Evidence:
        """Writes ``evidence/<variant>/<owner>[-name].safetensors``.

        Raises:
            OutputError: when the file cannot be written.
        """
        stem = f"{self.owner}-{name}" if name else self.owner
        evidence = write_evidence(self.directory, f"evidence/{self.variant}/{stem}.safetensors", kind, tensors)
        self.written.append(evidence)
        return evidence

    def read_evidence(self, evidence: Evidence) -> dict[str, Tensor]:
        """The tensors of an evidence file.

        Raises:
            OutputError: when it is missing, or not the file that was recorded.
        """
        return read_evidence(self.directory, evidence)

    def samples(self, source: str) -> Samples:
        """Data that the spec names, read once per run."""
        return self.sources(source)

    def path(self, source: str) -> Path:
        """Where a file that the spec names lies."""
        return self.sources.spec.resolve(source)

    def model_files(self) -> ModelFiles:
        """What the model is loaded from, as the spec names it."""
        model = self.sources.spec.model
        place = (model.factory or "").rpartition(":")[0]
        in_package = bool(model.factory) and not place.endswith(".py")
        remote = model.source is not None and "://" in model.source
        return ModelFiles(
            code=(place,) if model.factory and not in_package else (),
            weights=tuple(name for name in (model.weights, None if remote else model.source) if name),
            elsewhere=tuple(name for name in (place if in_package else None, model.source if remote else None) if name),
            trusted=model.trust,
        )

    def scratch(self, name: str) -> Path:
        """``results/<variant>.<owner>.<name>`` in the output folder, for work that a killed run can go on with."""
        return self.directory / "results" / f"{self.variant}.{self.owner}.{name}"


def write_evidence(directory: Path, path: str, kind: str, tensors: Mapping[str, Tensor]) -> Evidence:
    """Writes tensors as safetensors; equal tensors give equal bytes.

    Raises:
        OutputError: when the file cannot be written.
    """
    # Clones: safetensors refuses tensors that share memory, such as tied weights.
    data = save({key: tensors[key].detach().cpu().contiguous().clone() for key in sorted(tensors)})
    write_atomic(directory / path, data)
    return Evidence(path=path, sha256=hashlib.sha256(data).hexdigest(), kind=kind)


def read_evidence(directory: Path, evidence: Evidence) -> dict[str, Tensor]:
    """The tensors of an evidence file, read from the very bytes that were hashed.

    Raises:
        OutputError: when it is missing, lies outside the folder, or is not the file that was recorded.
    """
    path = (directory / evidence.path).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise OutputError(f"{evidence.path}: evidence must lie inside the output folder")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OutputError(f"{evidence.path}: cannot be read ({error.strerror or error})") from error
    if hashlib.sha256(data).hexdigest() != evidence.sha256:
        raise OutputError(f"{evidence.path}: was changed since the audit (its hash differs from the record)")
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise OutputError(f"{evidence.path}: is no safetensors file ({error})") from error


def choose_device(wanted: str) -> torch.device:
    """``auto`` picks the first of CUDA, MPS, CPU that is there.

    Raises:
        UnsupportedError: when the device asked for is not there.
    """
    mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UnsupportedError(f"device {wanted!r} does not exist: choose auto, cpu, mps, cuda or cuda:N") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise UnsupportedError(f"device {wanted!r} is not there: this machine has {count} of its kind; try auto")
    return device
