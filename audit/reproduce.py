"""Runs one check of a finished audit again, exactly as it was run, and holds the result against the record."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..reports.record import AuditRecord, Metric, Result, VariantRecord
from ..reports.schema import read_record
from .cache import seed_for
from .checks.base import Check, Claim
from .context import RunContext, Sources
from .errors import OutputError, SpecError
from .gates import BASE
from .guard import StepError, guarded
from .loading.model import load
from .output import read_origin
from .progress import Display, Silent
from .registry import unknown
from .reload import reload_variant
from .spec import Spec, parse_spec
from .target import Target

_RELATIVE = 1e-6


def reproduce(
    directory: Path,
    check_id: str,
    variant_id: str = BASE,
    *,
    base: Path | None = None,
    device: torch.device | None = None,
    display: Display | None = None,
) -> Iterator[Claim]:
    """One claim for each metric that was recorded: whether the check, run again, gives it.

    Args:
        base: the folder that the spec's relative paths start from; as the run noted it when None.

    Raises:
        AuditError: when the audit has no such check, or model and data cannot be loaded.
    """
    record = read_record(directory)
    variant, recorded = _recorded(record, check_id, variant_id)
    base = base or read_origin(directory)
    if base is None:
        raise OutputError("the spec's folder is not known: give it with --base")
    spec = parse_spec(record.spec, base)
    target, samples = load(spec, device or torch.device("cpu"))
    yield Claim("the model is the audited one", target.sha256 == record.model.sha256)
    yield Claim("the data are the audited ones", samples.sha256 == record.data.sha256)
    yield Claim("torch is the recorded version", torch.__version__ == record.environment.get("torch"))
    check = next(check for check in spec.checks if check.id == check_id)
    target = _target(spec, variant, target, directory)
    with tempfile.TemporaryDirectory() as folder:
        seed = seed_for(spec.seed, "check", check.id)
        sources = Sources(spec, target.classes)
        context = RunContext(Path(folder), check.id, seed, spec.batch_size, display or Silent(), variant_id, sources)
        log = Path(folder) / "log"
        try:
            again = guarded(lambda: check.run(target, samples, context), seed, target.module, log, log.name)
        except StepError as error:
            raise OutputError(f"{variant_id}:{check_id} did not finish: {error}") from error
    yield from _compared(check, recorded, again)


def _recorded(record: AuditRecord, check_id: str, variant_id: str) -> tuple[VariantRecord, Result]:
    variant = record.variant(variant_id)
    if variant is None:
        raise SpecError(unknown("variant", variant_id, [one.id for one in record.variants]))
    result = variant.result(check_id)
    if result is None:
        raise SpecError(unknown("check", check_id, [one.id for one in variant.results]))
    if result.status != "ok":
        raise OutputError(f"{variant_id}:{check_id} has no result to reproduce: {result.error}")
    return variant, result


def _target(spec: Spec, variant: VariantRecord, base: Target, directory: Path) -> Target:
    if variant.id == BASE:
        return base
    configured = next(one for one in spec.variants if one.id == variant.id)
    return reload_variant(configured, variant, base, directory)


def _compared(check: Check, recorded: Result, again: Result) -> Iterator[Claim]:
    for metric in recorded.metrics:
        found = again.metric(metric.name)
        detail = f"recorded {_text(metric)}, now {_text(found)}"
        yield Claim(f"{check.id}.{metric.name} is the same", found is not None and _same(metric, found), detail)
    hashes = {Path(item.path).name: item.sha256 for item in again.evidence}
    for item in recorded.evidence:
        name = Path(item.path).name
        yield Claim(f"{name} is the same file", hashes.get(name) == item.sha256)


def _same(first: Metric, second: Metric) -> bool:
    pairs = ((first.value, second.value), (first.ci_low, second.ci_low), (first.ci_high, second.ci_high))
    return all(_equal(a, b) for a, b in pairs) and first.n == second.n


def _equal(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=1e-12)


def _text(metric: Metric | None) -> str:
    return "–" if metric is None or metric.value is None else f"{metric.value:.6g}"
