"""Re-checks a finished audit: its record, its evidence, and every claim on the reloaded model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from ..reports.html import render_html
from ..reports.record import AuditRecord, Evidence, Metric, Result, VariantRecord
from ..reports.render import FILES
from ..reports.schema import read_record
from . import gains
from .cache import intact, seed_for, stable_hash
from .changes import same_changes, with_changes
from .checks.base import Check, Claim
from .context import RunContext, Sources
from .environment import tool
from .errors import AuditError, OutputError
from .gates import BASE, evaluate_gate, overall, parse_gate
from .guard import StepError, guarded
from .loading.model import load
from .output import DIGEST, RECORD, read_origin
from .progress import Silent
from .reload import reload_variant
from .samples import Samples
from .signing import PublicKey, check_signature
from .spec import Spec, parse_spec
from .target import Target
from .variants.footprint import parameter_count, state_bytes


class ReadOnlyContext(RunContext):
    """A context that re-checks and therefore writes no evidence."""

    def evidence(self, kind: str, tensors: object, name: str = "") -> Evidence:
        """Refuses.

        Raises:
            OutputError: always.
        """
        raise OutputError(f"verification writes no evidence ({kind} {name}, {type(tensors).__name__})")


def verify(
    directory: Path,
    *,
    base: Path | None = None,
    device: torch.device | None = None,
    with_model: bool = True,
    public_key: PublicKey | None = None,
) -> Iterator[Claim]:
    """Every claim of the audit in ``directory`` and whether it holds, as each is checked.

    Args:
        base: the folder that the spec's relative paths start from; as the run noted it when None.
        device: where to run the model; the CPU when None.
        with_model: false to check record and evidence only.
        public_key: whose signature the record must carry.

    Raises:
        AuditError: when there is no record to check.
    """
    record = read_record(directory)
    yield _digest(directory)
    yield from _signed(directory, public_key)
    files = list(_evidence(record, directory))
    yield from files
    yield from consistent(record, directory)
    if all(claim.ok for claim in files):
        yield from _from_evidence(record, directory)
    if not with_model:
        return
    base = base or read_origin(directory)
    if base is None:
        yield Claim("the model can be reloaded", False, "the spec's folder is not known: give it with --base")
        return
    yield from _on_model(record, directory, base, device or torch.device("cpu"))


def _signed(directory: Path, public_key: PublicKey | None) -> Iterator[Claim]:
    if public_key is not None:
        ok, detail = check_signature(directory / RECORD, public_key)
        yield Claim(f"{RECORD} is signed by {public_key.name}", ok, detail)


def _from_evidence(record: AuditRecord, directory: Path) -> Iterator[Claim]:
    """What was made from the evidence: the comparisons with the base, and the page's pictures and words."""
    again = with_changes(record.variants, directory)
    yield Claim(
        "paired changes follow from the evidence",
        all(same_changes(a.changes, b.changes) for a, b in zip(record.variants, again, strict=True)),
    )
    yield from _report(record, directory)


def _report(record: AuditRecord, directory: Path) -> Iterator[Claim]:
    """Whether the page that people read says what the record says; another version may lay it out differently."""
    path = directory / FILES["html"]
    if not path.exists() or record.tool != tool():
        return
    same = path.read_bytes() == render_html(record, directory).encode()
    why = "" if same else "it was changed, or made before the record: auditorch report DIR writes it again"
    yield Claim(f"{path.name} is what the record renders to", same, why)


def consistent(record: AuditRecord, directory: Path) -> Iterator[Claim]:
    """Whether the record agrees with itself: spec hash, intervals, gates, verdict, ids."""
    yield Claim("the spec is the one that was hashed", stable_hash(record.spec) == record.spec_sha256)
    ids = [variant.id for variant in record.variants]
    yield Claim("variants have ids of their own, the base first", len(set(ids)) == len(ids) and ids[:1] == [BASE])
    for variant in record.variants:
        for result in variant.results:
            wrong = [metric.name for metric in result.metrics if not _plausible(metric)]
            what = f"{variant.id}:{result.id}: each value lies in its interval"
            yield Claim(what, not wrong, ", ".join(wrong))
    try:
        yield from _gates_again(record, directory)
    except (AuditError, ValueError, TypeError, KeyError) as error:
        yield Claim("the gates of the recorded spec can be read", False, str(error))
    yield Claim(
        "the verdict follows from the gates", record.verdict in (overall(record.gates, record.variants), "error")
    )


def _digest(directory: Path) -> Claim:
    what = f"{RECORD} has the digest of {DIGEST}"
    try:
        noted = (directory / DIGEST).read_bytes()
        digest = hashlib.sha256((directory / RECORD).read_bytes()).hexdigest()
        found = f"{digest}  {RECORD}\n".encode()
    except (OSError, ValueError) as error:
        return Claim(what, False, str(error))
    return Claim(what, noted == found, "" if noted == found else "the record was changed after the audit")


def _plausible(metric: Metric) -> bool:
    value, low, high = metric.value, metric.ci_low, metric.ci_high
    if value is None or math.isnan(value):
        return True
    slack = 1e-9 * max(1.0, abs(value))
    in_interval = low is None or high is None or not low <= high or low - slack <= value <= high + slack
    # The interval of a share never goes below 0; that of a difference of two shares may.
    least = -1 if low is not None and low < 0 else 0
    return in_interval and (metric.unit != "rate" or least - slack <= value <= 1 + slack)


def _gates_again(record: AuditRecord, directory: Path) -> Iterator[Claim]:
    """Judges each gate of the spec again from the recorded metrics; none may have been dropped in silence."""
    recorded = {gate.expression: gate for gate in record.gates}
    for entry in record.spec.get("gates", ()):
        written = {"expression": entry} if isinstance(entry, str) else dict(entry)
        confidence = "none" if written.get("confidence", "") in (None, "none") else "interval"
        gate = parse_gate(str(written["expression"]))
        found = recorded.pop(gate.expression, None)
        what = f"gate {gate.expression}: the verdict follows from the metric"
        if found is not None:
            ground = record.variants, confidence
            again = evaluate_gate(gate, *ground, directory=directory, classes=record.data.classes)
            yield Claim(what, again == found)
        elif not any(gate.expression in text for text in record.not_covered):
            yield Claim(what, False, "the spec has the gate, the record does not")
    yield from (Claim(f"gate {expression} is one of the spec", False) for expression in recorded)


def _evidence(record: AuditRecord, directory: Path) -> Iterator[Claim]:
    for variant in record.variants:
        for item in (*variant.evidence, *(item for result in variant.results for item in result.evidence)):
            inside = (directory / item.path).resolve().is_relative_to(directory.resolve())
            ok = inside and intact(directory, item)
            yield Claim(f"{item.path} is the recorded file", ok, "" if ok else "missing or changed since the audit")


def _on_model(record: AuditRecord, directory: Path, base: Path, device: torch.device) -> Iterator[Claim]:
    try:
        spec = parse_spec(record.spec, base)
        target, samples = load(spec, device)
    except AuditError as error:
        yield Claim("model and data can be reloaded", False, str(error))
        return
    yield Claim("the model is the audited one", target.sha256 == record.model.sha256, _differs(target.sha256))
    yield Claim("the data are the audited ones", samples.sha256 == record.data.sha256, _differs(samples.sha256))
    yield Claim("the same number of samples is chosen", len(samples) == record.data.n, f"{len(samples)}")
    if target.sha256 != record.model.sha256 or samples.sha256 != record.data.sha256:
        return
    for variant in record.variants:
        yield from _on_variant(variant, record.variants[0], spec, target, samples, directory)


def _differs(sha256: str) -> str:
    return f"sha256 {sha256[:16]}…"


def _on_variant(
    recorded: VariantRecord, base: VariantRecord, spec: Spec, target: Target, samples: Samples, directory: Path
) -> Iterator[Claim]:
    if recorded.status != "ok":
        return
    if recorded.id != BASE:
        configured = next((variant for variant in spec.variants if variant.id == recorded.id), None)
        if configured is None:
            yield Claim(f"{recorded.id} is a variant of the spec", False)
            return
        try:
            target = reload_variant(configured, recorded, target, directory)
        except (AuditError, RuntimeError, StopIteration) as error:
            yield Claim(f"{recorded.id} can be reloaded from its weights", False, str(error))
            return
    yield from _size_again(recorded, target)
    sources = Sources(spec, (target.base or target).classes)
    for result in recorded.results:
        if result.status == "ok":
            yield from _on_result(result, recorded.id, spec, target, samples, directory, sources)
    if recorded.id != BASE:
        yield from _gains_again(base, recorded, target, directory, spec.batch_size)


def _size_again(recorded: VariantRecord, target: Target) -> Iterator[Claim]:
    sizes = {"parameters": parameter_count(target.module), "size_bytes": state_bytes(target.module)}
    for metric in recorded.metrics:
        if metric.name in sizes:
            found = sizes[metric.name]
            yield Claim(f"{recorded.id}: {metric.name} of the reloaded model", metric.value == found, f"{found}")


def _gains_again(
    base: VariantRecord, recorded: VariantRecord, target: Target, directory: Path, batch_size: int | None
) -> Iterator[Claim]:
    what = f"{recorded.id}: what transfers from the base, and the findings that follow"
    try:
        found = gains.trials(base, recorded, target, directory, batch_size)
    except (AuditError, StopIteration, KeyError) as error:
        yield Claim(what, False, str(error))
        return
    metrics = {metric.name: metric.value for metric in recorded.metrics}
    again = {trial.metric.name: trial.metric.value for trial in found}
    yield Claim(what, again.items() <= metrics.items() and set(gains.findings(found)) <= set(recorded.findings))


def _on_result(
    result: Result, variant_id: str, spec: Spec, target: Target, samples: Samples, directory: Path, sources: Sources
) -> Iterator[Claim]:
    where = f"{variant_id}:{result.id}"
    check = next((check for check in spec.checks if check.id == result.id), None)
    if check is None:
        yield Claim(f"{where} is a check of the spec", False)
        return
    seed = seed_for(spec.seed, "check", check.id)
    context = ReadOnlyContext(directory, check.id, seed, spec.batch_size, Silent(), variant_id, sources)
    for claim in _claims(check, target, samples, result, context):
        yield Claim(f"{where}: {claim.what}", claim.ok, claim.detail)


def _claims(check: Check, target: Target, samples: Samples, result: Result, context: RunContext) -> list[Claim]:
    """The check's claims; evidence that cannot be read, or breaks the check's own code, is a claim that fails."""
    log = context.directory / "results" / f"{context.variant}.{check.id}.verify.log"
    try:
        return guarded(
            lambda: list(check.verify(target, samples, result, context)),
            context.seed,
            target.module,
            log,
            log.relative_to(context.directory).as_posix(),
        )
    except (AuditError, StepError, MemoryError) as error:
        return [Claim("its evidence can be re-checked", False, str(error))]
