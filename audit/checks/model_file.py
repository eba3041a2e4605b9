"""What the model was loaded from: each file's format, whether it can run code, and its hash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field

from ...reports.record import Finding, Metric, Result, Table
from ..errors import ModelError
from ..loading.files import read_bytes
from ..loading.pickle_scan import ScanReport, scan
from ..samples import Samples
from ..target import Target
from . import standards
from .base import Check, Claim, Context, ModelFiles
from .metrics import plain

Verdict = Literal["clean", "dangerous", "unknown", "code"]

COLUMNS = ("file", "role", "format", "verdict", "bytes", "sha256", "reasons")
_PICKLES = ("PyTorch checkpoint", "pickle")


@dataclass(frozen=True, slots=True)
class Examined:
    """One file: named as the spec names it, files of a folder below that."""

    name: str
    role: str
    format: str
    verdict: Verdict
    size: int
    sha256: str
    reasons: tuple[str, ...]

    @property
    def row(self) -> tuple[str | int, ...]:
        return (self.name, self.role, self.format, self.verdict, self.size, self.sha256, "; ".join(self.reasons))


class ModelFile(Check):
    """Scans the files that the model was loaded from without executing anything, and records their hashes.

    Weights in safetensors cannot run code. A pickle-based checkpoint is followed operation by operation against an
    allowlist; what is not known to be harmless is not clean. Python that builds the model is code by design: it is
    recorded with its hash, and to be reviewed as code is.
    """

    name: ClassVar[str] = "model_file"
    title: ClassVar[str] = "The model's files"
    question: ClassVar[str] = "Can the file be trusted?"
    requires: ClassVar[frozenset[Literal["gradients", "scores", "labels"]]] = frozenset()
    references: ClassVar[tuple[str, ...]] = (
        "Safetensors, a format that holds tensors and cannot run code (external audit by Trail of Bits, 2023)",
        "CVE-2025-32434 and CVE-2026-24747: code execution through torch.load with weights_only=True",
    )
    standards: ClassVar[tuple[str, ...]] = standards.MALICIOUS_FILE
    metrics: ClassVar[Mapping[str, str]] = {
        "files": "Files that the model was loaded from.",
        "dangerous_files": "Files that would run code when they are loaded.",
        "unknown_files": "Files that could not be examined, or use names that weights do not need.",
        "code_files": "Python files that run when the model is built.",
    }
    cost: ClassVar[str] = "reads each file once; no forward pass"

    variants: tuple[str, ...] | None = Field(
        default=("base",), description="Variants to run on; the base, since variants are built from its files."
    )

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        del target, samples
        files = context.model_files()
        examined = list(examine(files, context))
        context.progress.start(self.title, 1)
        hashes = [list(bytes.fromhex(one.sha256 or "00" * 32)) for one in examined]
        evidence = context.evidence("hashes", {"sha256": torch.tensor(hashes, dtype=torch.uint8).reshape(-1, 32)})
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=_summary(examined, files),
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=tuple(_metrics(examined)),
            findings=tuple(_findings(examined, files)),
            figures=(_table(examined),),
            evidence=(evidence,),
            warnings=tuple(f"{name} is not a local file: it was not scanned here." for name in files.elsewhere),
            not_covered=(
                "What the Python that builds the model does, and the libraries that it imports.",
                "Behaviour hidden in the weights, such as a backdoor: no scan of a file shows it.",
                "Where the files come from: a hash shows that they are the same, not who made them.",
            ),
            references=self.references,
            standards=self.standards,
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        del target, samples
        recorded = next(figure for figure in result.figures if isinstance(figure, Table))
        again = list(examine(context.model_files(), context))
        for one in again:
            known = next((row for row in recorded.rows if row[0] == one.name), None)
            yield Claim(f"{one.name} is the file that was scanned, with the same outcome", known == one.row)
        left = {str(row[0]) for row in recorded.rows} - {one.name for one in again}
        yield Claim("no file of the model is missing", not left, ", ".join(sorted(left)))
        noted = [bytes(row.tolist()).hex() for row in context.read_evidence(result.evidence[0])["sha256"]]
        yield Claim("the hashes are those of the evidence", noted == [row[5] or "00" * 32 for row in recorded.rows])
        counts = {metric.name: metric.value for metric in _metrics(again)}
        same = all(counts.get(metric.name) == metric.value for metric in result.metrics)
        yield Claim("the counts follow from the files", same)


def examine(files: ModelFiles, context: Context) -> Iterator[Examined]:
    """Every file that the model is loaded from, those of folders one by one.

    Raises:
        ModelError: for a file that is not there.
    """
    for role, names in (("code", files.code), ("weights", files.weights)):
        for name in names:
            root = context.path(name)
            for report in scan([root]):
                yield _examined(report, root, name, role)


def _examined(report: ScanReport, root: Path, name: str, role: str) -> Examined:
    path = Path(report.path)
    inside = path.relative_to(root).as_posix() if path != root else ""
    is_code = path.suffix == ".py"
    return Examined(
        name=f"{name.rstrip('/')}/{inside}" if inside else name,
        role="code" if is_code else role if not inside or role == "code" else "part of the model folder",
        format="Python source" if is_code else report.format,
        verdict="code" if is_code and report.status == "clean" else report.status,
        size=_size(path),
        sha256=report.sha256,
        reasons=report.reasons,
    )


def _size(path: Path) -> int:
    try:
        return len(read_bytes(path, ModelError, allow_empty=True)) if not path.is_symlink() else 0
    except ModelError:
        return 0


def _metrics(examined: list[Examined]) -> Iterator[Metric]:
    counts = {
        "files": ("Files", None, len(examined)),
        "dangerous_files": ("Files that would run code", False, _count(examined, "dangerous")),
        "unknown_files": ("Files that could not be cleared", False, _count(examined, "unknown")),
        "code_files": ("Python files that build the model", None, _count(examined, "code")),
    }
    for name, (label, better, count) in counts.items():
        yield plain(name, float(count), len(examined), label=label, unit="files", higher_is_better=better)


def _count(examined: list[Examined], verdict: Verdict) -> int:
    return sum(one.verdict == verdict for one in examined)


def _findings(examined: list[Examined], files: ModelFiles) -> Iterator[Finding]:
    tags = standards.MALICIOUS_FILE
    for one in examined:
        reasons = "; ".join(one.reasons) or "it runs code when it is loaded"
        if one.verdict == "dangerous":
            remedy = "Do not load it. Get the weights as safetensors from a source that you trust."
            yield Finding(
                severity="critical",
                title="A model file can run code",
                detail=f"{one.name} ({one.format}): {reasons}.",
                remedy=remedy,
                standards=tags,
            )
        elif one.verdict == "unknown":
            yield Finding(
                severity="medium",
                title="A model file could not be cleared",
                detail=f"{one.name} ({one.format}): {reasons}.",
                remedy="Convert it to safetensors, or find out what it holds before you rely on it.",
                standards=tags,
            )
        elif any(word in one.format for word in _PICKLES):
            yield Finding(
                severity="low",
                title="Weights are kept in a format that can carry code",
                detail=f"{one.name} is {one.format}. This file holds nothing but tensors; the format could.",
                remedy="Save the weights as safetensors, so that no later copy needs a scan.",
                standards=tags,
            )
    if files.trusted:
        yield Finding(
            severity="high",
            title="The spec trusts formats that can run code",
            detail="With trust: true the model is loaded even where its format can run code.",
            remedy="Remove trust: true, and export the model to a format that cannot.",
            standards=tags,
        )


def _summary(examined: list[Examined], files: ModelFiles) -> str:
    dangerous, unknown = _count(examined, "dangerous"), _count(examined, "unknown")
    code = [one.name for one in examined if one.verdict == "code"]
    if not examined:
        return "No local file was there to scan: the model comes from an installed package or a service."
    if dangerous:
        text = f"No: {dangerous} of {len(examined)} files would run code when loaded."
    elif unknown:
        text = f"Not shown: {unknown} of {len(examined)} files could not be cleared."
    else:
        text = f"None of the {len(examined)} files carries code that loading would run."
    if code:
        text += f" Python that builds the model runs by design and is to be reviewed: {', '.join(code[:3])}."
    return text + (" The spec says trust: true." if files.trusted else "")


def _table(examined: list[Examined]) -> Table:
    return Table(
        id="files",
        title="Files of the model",
        caption="The bytes that were scanned are the bytes that are hashed.",
        columns=COLUMNS,
        rows=tuple(one.row for one in examined),
    )
