"""Runs an audit: plan, variants, checks, gates, record, reports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..attacks.memory import freed_memory_kept
from ..reports.record import AuditRecord, DataInfo, Gate, Result, VariantRecord
from . import gains
from .cache import Cache, Key, seed_for, stable_hash
from .changes import with_changes
from .checks.base import Check
from .context import RunContext, Sources, choose_device
from .coverage import not_covered
from .environment import environment, tool
from .errors import AuditError, DataError
from .export import write_export
from .gates import BASE, Confidence, ParsedGate, evaluate_gate, overall
from .guard import StepError, guarded, with_less_memory
from .hashing import source_sha256
from .loading.model import describe_target, load
from .output import write_outputs
from .plan import Plan, make_plan, missing_for
from .privacy_curve import with_privacy_curve
from .progress import Display, Silent, Step
from .reload import reload_variant
from .samples import Samples
from .spec import Spec
from .storage import owned
from .target import Target
from .variants.base import Built, Variant
from .variants.footprint import footprint_metrics, with_footprint

INTERRUPTED = "not run: the audit was interrupted"


class InterruptedAuditError(AuditError):
    """Ctrl-C: what was finished is kept and reported."""

    exit_code = 130


def run_audit(
    spec: Spec,
    output: Path,
    *,
    device: str = "auto",
    fresh: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    display: Display | None = None,
    wait: bool = False,
) -> AuditRecord:
    """Audits the model of ``spec`` and writes record, reports and evidence into ``output``.

    Results that an earlier run left in ``output`` are taken over where nothing they depend on has changed.

    Args:
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        fresh: compute everything anew.
        only, skip: ids of checks and variants to run, or to leave out.
        display: shows progress; silent when left out.
        wait: when another run is using ``output``, wait for its end instead of refusing.

    Raises:
        AuditError: when spec, model, data or output folder cannot be used.
        InterruptedAuditError: after Ctrl-C, when the partial record has been written.
    """
    began = time.monotonic()
    plan = make_plan(spec, only, skip)
    place = choose_device(device)
    display = display or Silent()
    with owned(output, wait=wait), display, freed_memory_kept():
        target, samples = load(spec, place)
        run = Run(spec, plan, target, samples, Cache(output, fresh), display)
        interrupted = run.everything()
        record = run.record(began, interrupted=interrupted)
        write_outputs(record, output, spec)
        for variant in plan.variants:
            found = record.variant(variant.id)
            if variant.exported and found is not None and found.status == "ok":
                write_export(record, found, variant, target, output, output / "export" / variant.id)
    if interrupted:
        raise InterruptedAuditError(f"interrupted; finished results are kept in {output}: run again to go on")
    return record


@dataclass(frozen=True, slots=True)
class Prepared:
    """A variant ready for its checks; ``target`` is None when it could not be built."""

    record: VariantRecord
    target: Target | None


class Run:
    """One run: what it works on, and what it has found so far."""

    def __init__(
        self, spec: Spec, plan: Plan, target: Target, samples: Samples, cache: Cache, display: Display
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._target = target
        self._samples = samples
        self._cache = cache
        self._display = display
        self._sources = Sources(spec, target.classes)
        self._files = self._hash_files()
        self._variants: dict[str, VariantRecord] = {}
        self._results: dict[tuple[str, str], Result] = {}

    def everything(self) -> bool:
        """Runs all steps; true when Ctrl-C ended them early."""
        self._display.plan(self._steps())
        try:
            self._checks_on(BASE, self._base())
            for variant in self._plan.variants:
                self._checks_on(variant.id, self._prepare(variant))
        except KeyboardInterrupt:
            return True
        return False

    def record(self, began: float, *, interrupted: bool) -> AuditRecord:
        """The record of what was found."""
        variants = with_privacy_curve(with_changes(self._variant_records(), self._cache.directory))
        gates = tuple(self._judged(parsed, gate.confidence, variants) for parsed, gate in self._plan.gates)
        computing = sum(variant.seconds + sum(result.seconds for result in variant.results) for variant in variants)
        raw = dict(self._spec.raw)
        return AuditRecord(
            name=self._spec.name,
            created=datetime.now(UTC).replace(microsecond=0),
            seconds=round(max(computing, time.monotonic() - began), 3),
            tool=tool(),
            environment=environment(self._target.device),
            spec=raw,
            spec_sha256=stable_hash(raw),
            model=describe_target(self._target, self._spec.model),
            data=self._data_info(),
            seed=self._spec.seed,
            verdict="error" if interrupted else overall(gates, variants),
            gates=gates,
            variants=variants,
            not_covered=not_covered(self._spec, self._plan, variants, interrupted=interrupted),
        )

    def _judged(self, gate: ParsedGate, confidence: Confidence, variants: tuple[VariantRecord, ...]) -> Gate:
        directory, classes = self._cache.directory, self._samples.classes
        return evaluate_gate(gate, variants, confidence, directory=directory, classes=classes)

    # Plan

    def _steps(self) -> list[Step]:
        steps = [self._step(check, BASE) for check in self._plan.on(BASE)]
        for variant in self._plan.variants:
            steps.append(_build_step(variant))
            steps += [self._step(check, variant.id) for check in self._plan.on(variant.id)]
        return steps

    def _step(self, check: Check, variant_id: str) -> Step:
        name = check.title if check.id == check.name else f"{check.title} ({check.id})"
        return Step(f"{variant_id}: {name}", check.id)

    def _hash_files(self) -> Mapping[str, str]:
        """Hash of each file that a check or variant names; a file that is not there ends the run here."""
        hashes: dict[str, str] = {}
        for owner in (*self._plan.checks, *self._plan.variants):
            for source in owner.files():
                try:
                    hashes[source] = source_sha256(source, self._spec, self._sources)
                except DataError as error:
                    raise DataError(f"{owner.id}: {error}") from error
        return hashes

    # Variants

    def _base(self) -> Prepared:
        key = Key(
            {
                "name": "footprint",
                "version": 1,
                "model": self._target.sha256,
                "torch": torch.__version__,
                "device": self._target.device.type,
            }
        )
        record = self._cache.get(key, VariantRecord) or self._cache.put(key, self._measured_base())
        self._variants[BASE] = record
        return Prepared(record, self._target)

    def _measured_base(self) -> VariantRecord:
        record = VariantRecord(id=BASE, kind=BASE, title="Model as given", warnings=self._target.warnings)
        work = lambda: footprint_metrics(self._target, self._samples)  # noqa: E731
        try:
            metrics = guarded(work, self._spec.seed, self._target.module, *self._log(BASE, "footprint"))
        except StepError as error:
            return record.model_copy(update={"warnings": (*record.warnings, f"Size and speed not measured: {error}")})
        return record.model_copy(update={"metrics": metrics})

    def _prepare(self, variant: Variant) -> Prepared:
        step = _build_step(variant)
        self._display.begin(step)
        key = self._key(variant, variant.id, self._target.sha256, seed_for(self._spec.seed, "variant", variant.id))
        kept = self._cache.get(key, VariantRecord)
        began = time.monotonic()
        try:
            record = kept or self._cache.put(key, self._build(variant, began))
            target = self._reloaded(variant, record)
            outcome = "taken over from an earlier run" if kept else "ok"
        except StepError as error:
            record, target, outcome = _failed(variant, str(error), began), None, f"error: {error}"
        self._variants[variant.id] = record
        self._display.end(step, outcome)
        return Prepared(record, target)

    def _build(self, variant: Variant, began: float) -> VariantRecord:
        context = self._context("model", seed_for(self._spec.seed, "variant", variant.id), variant.id)

        def build(batch_size: int | None) -> Built:
            context.batch_size = batch_size
            work = lambda: self._footprinted(variant, variant.build(self._target, self._samples, context))  # noqa: E731
            return guarded(work, context.seed, self._target.module, *self._log(variant.id, "model"))

        built, used = with_less_memory(build, self._spec.batch_size)
        weights = context.evidence("weights", built.module.state_dict())
        return VariantRecord(
            id=variant.id,
            kind=variant.name,
            title=variant.title,
            summary=built.summary,
            parameters={**variant.model_dump(mode="json", exclude={"id"}), **built.parameters},
            metrics=built.metrics,
            figures=built.figures,
            warnings=(*built.warnings, *_memory_warning(used, self._spec.batch_size)),
            evidence=(weights, *(item for item in context.written if item != weights)),
            seconds=round(time.monotonic() - began, 3),
        )

    def _footprinted(self, variant: Variant, built: Built) -> Built:
        deployed = variant.as_built(built.parameters).deployed(self._target.with_module(built.module, ""))
        found = footprint_metrics(deployed, self._samples)
        return replace(built, metrics=with_footprint(built.metrics, found))

    def _reloaded(self, variant: Variant, record: VariantRecord) -> Target:
        """The variant from its saved weights, also right after it was built: what is audited is what is kept."""
        return guarded(
            lambda: reload_variant(variant, record, self._target, self._cache.directory),
            self._spec.seed,
            self._target.module,
            *self._log(variant.id, "model-reload"),
        )

    # Checks

    def _checks_on(self, variant_id: str, prepared: Prepared) -> None:
        for check in self._plan.on(variant_id):
            step = self._step(check, variant_id)
            self._display.begin(step)
            if prepared.target is None:
                self._display.end(step, "not run: the variant could not be built")
                continue
            result, outcome = self._one(check, prepared.target, variant_id)
            self._results[variant_id, check.id] = result
            self._display.end(step, outcome)
        if variant_id != BASE and prepared.target is not None:
            self._weigh(variant_id, prepared.target)

    def _weigh(self, variant_id: str, target: Target) -> None:
        """Adds to a variant what only shows beside the base: whether its gain in robustness is real."""
        base, variant = (self._with_results(owner) for owner in (BASE, variant_id))
        work = lambda: gains.trials(base, variant, target, self._cache.directory, self._spec.batch_size)  # noqa: E731
        record = self._variants[variant_id]
        try:
            found = guarded(work, self._spec.seed, target.module, *self._log(variant_id, "gains"))
        except StepError as error:
            update: dict[str, Any] = {"warnings": (*record.warnings, f"Not compared with the base: {error}")}
        else:
            metrics = (*record.metrics, *(trial.metric for trial in found))
            update = {"metrics": metrics, "findings": (*record.findings, *gains.findings(found))}
        self._variants[variant_id] = record.model_copy(update=update)

    def _with_results(self, variant_id: str) -> VariantRecord:
        results = tuple(result for (owner, _), result in self._results.items() if owner == variant_id)
        return self._variants[variant_id].model_copy(update={"results": results})

    def _one(self, check: Check, target: Target, variant_id: str) -> tuple[Result, str]:
        reason = missing_for(check, target)
        if reason:
            return _without_result(check, "skipped", reason), f"skipped: {reason}"
        seed = seed_for(self._spec.seed, "check", check.id)
        key = self._key(check, variant_id, target.sha256, seed)
        kept = self._cache.get(key, Result)
        if kept is not None:
            return kept, "taken over from an earlier run"
        began = time.monotonic()
        try:
            return self._cache.put(key, self._examine(check, target, variant_id, seed)), "ok"
        except StepError as error:
            seconds = round(time.monotonic() - began, 3)
            return _without_result(check, "error", str(error), seconds), f"error: {error}"

    def _examine(self, check: Check, target: Target, variant_id: str, seed: int) -> Result:
        context = self._context(check.id, seed, variant_id)

        def examine(batch_size: int | None) -> Result:
            context.batch_size = batch_size
            context.written.clear()
            work = lambda: check.run(target, self._samples, context)  # noqa: E731
            return guarded(work, seed, target.module, *self._log(variant_id, check.id))

        began = time.monotonic()
        result, used = with_less_memory(examine, self._spec.batch_size)
        if not isinstance(result, Result):
            raise StepError(f"the check returned {type(result).__name__}, not a Result")
        unlisted = [item for item in context.written if item.path not in {listed.path for listed in result.evidence}]
        return result.model_copy(
            update={
                "id": check.id,
                "question": result.question or check.question,
                "evidence": (*result.evidence, *unlisted),
                "warnings": (*result.warnings, *_memory_warning(used, self._spec.batch_size)),
                "seconds": round(time.monotonic() - began, 3),
            }
        )

    # Shared

    def _key(self, what: Check | Variant, variant_id: str, model_sha256: str, seed: int) -> Key:
        """Everything that a check's result or a variant's weights depend on.

        A variant does not depend on the audit's samples. Library and kind of device are part of the key because the
        record states them for all of its results.
        """
        data = [self._samples.sha256, stable_hash(self._samples.ids.tolist()), list(self._samples.classes)]
        return Key(
            {
                "name": what.name,
                "version": what.version,
                "config": what.model_dump(mode="json", exclude={"variants"}),
                "variant": variant_id,
                "model": model_sha256,
                "data": data if isinstance(what, Check) else None,
                "files": {source: self._files[source] for source in what.files()},
                "surroundings": dict(what.surroundings()),
                "seed": seed,
                "trust": self._spec.model.trust,
                "torch": torch.__version__,
                "device": self._target.device.type,
            }
        )

    def _context(self, owner: str, seed: int, variant_id: str) -> RunContext:
        directory, batch_size = self._cache.directory, self._spec.batch_size
        return RunContext(directory, owner, seed, batch_size, self._display, variant_id, self._sources)

    def _log(self, variant_id: str, owner: str) -> tuple[Path, str]:
        name = f"results/{variant_id}.{owner}.log"
        return self._cache.directory / name, name

    def _variant_records(self) -> list[VariantRecord]:
        """All variants with their results; what did not run is there with the reason."""
        records = []
        for variant_id, configured in [(BASE, None), *((variant.id, variant) for variant in self._plan.variants)]:
            record = self._variants.get(variant_id)
            if record is None:
                record = _failed(configured, INTERRUPTED) if configured else self._base().record
            results = [self._result(check, variant_id) for check in self._plan.on(variant_id)]
            records.append(record.model_copy(update={"results": tuple(results)}))
        return records

    def _result(self, check: Check, variant_id: str) -> Result:
        found = self._results.get((variant_id, check.id))
        if found is not None:
            return found
        broken = self._variants[variant_id].status == "error" if variant_id in self._variants else False
        return _without_result(check, "skipped", "the variant could not be built" if broken else INTERRUPTED)

    def _data_info(self) -> DataInfo:
        samples = self._samples
        raw, _ = next(samples.batches(1))
        return DataInfo(
            source=samples.source,
            sha256=samples.sha256,
            n=len(samples),
            classes=samples.classes,
            shape=tuple(self._target.encode(raw).shape[1:]),
        )


def _build_step(variant: Variant) -> Step:
    return Step(f"{variant.id}: {variant.title}", f"variant {variant.id}")


def _failed(variant: Variant, reason: str, began: float | None = None) -> VariantRecord:
    return VariantRecord(
        id=variant.id,
        kind=variant.name,
        title=variant.title,
        parameters=variant.model_dump(mode="json", exclude={"id"}),
        status="error",
        error=reason,
        seconds=0.0 if began is None else round(time.monotonic() - began, 3),
    )


def _without_result(check: Check, status: str, reason: str, seconds: float = 0.0) -> Result:
    return Result.model_validate(
        {
            "check": check.name,
            "id": check.id,
            "title": check.title,
            "question": check.question,
            "status": status,
            "error": reason,
            "parameters": check.model_dump(mode="json", exclude={"id", "variants"}),
            "references": check.references,
            "standards": check.standards,
            "seconds": seconds,
        }
    )


def _memory_warning(used: int | None, wanted: int | None) -> tuple[str, ...]:
    return () if used == wanted else (f"Memory ran out; finished with a batch size of {used}.",)
