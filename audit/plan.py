"""Which checks run on which variants, and what a run leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import registry
from .checks.base import Check
from .errors import SpecError
from .gates import BASE, ParsedGate, parse_gate
from .spec import GateSpec, Spec
from .target import Target
from .variants.base import Variant


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of a run.

    Attributes:
        base: whether checks run on the untreated model.
        left_out: ids that ``only`` or ``skip`` removed.
    """

    checks: tuple[Check, ...]
    variants: tuple[Variant, ...]
    base: bool
    gates: tuple[tuple[ParsedGate, GateSpec], ...]
    left_out: frozenset[str]
    dropped_gates: tuple[str, ...]

    def on(self, variant_id: str) -> tuple[Check, ...]:
        """The checks of one variant."""
        if variant_id == BASE and not self.base:
            return ()
        return tuple(check for check in self.checks if check.variants is None or variant_id in check.variants)


def make_plan(spec: Spec, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Plan:
    """Narrows a spec to the ids of ``only`` (checks, variants, ``base``) without those of ``skip``.

    Gates that lose their check or variant are dropped and named in ``dropped_gates``.

    Raises:
        SpecError: for an id that the spec does not have, or when no check is left.
    """
    checks = [check.id for check in spec.checks]
    variants = [BASE, *(variant.id for variant in spec.variants)]
    for wanted in (*only, *skip):
        if wanted not in (*checks, *variants):
            raise SpecError(registry.unknown("check or variant", wanted, (*checks, *variants)))
    left_out = frozenset([*_left_out(checks, only, skip), *_left_out(variants, only, skip)])
    plan = Plan(
        checks=tuple(check for check in spec.checks if check.id not in left_out),
        variants=tuple(variant for variant in spec.variants if variant.id not in left_out),
        base=BASE not in left_out,
        gates=tuple(_gates(spec, left_out)),
        left_out=left_out,
        dropped_gates=tuple(gate.expression for gate in spec.gates if _loses(parse_gate(gate.expression), left_out)),
    )
    if not plan.checks:
        raise SpecError("--only and --skip leave no check to run")
    return plan


def missing_for(check: Check, target: Target) -> str:
    """Why a check cannot examine a target; empty when it can."""
    if target.modality not in check.modalities:
        return f"it examines {', '.join(sorted(check.modalities))}; this model takes {target.modality}"
    lacking = check.required() - target.access
    if lacking:
        given = ", ".join(sorted(target.access)) or "nothing"
        return f"it needs {', '.join(sorted(lacking))} of the model; this target gives {given}"
    return ""


def _left_out(ids: Sequence[str], only: Sequence[str], skip: Sequence[str]) -> Iterator[str]:
    """``only`` narrows checks and variants apart from each other: naming a check keeps every variant."""
    chosen = [wanted for wanted in only if wanted in ids] or ids
    yield from (name for name in ids if name not in chosen or name in skip)


def _gates(spec: Spec, left_out: frozenset[str]) -> Iterator[tuple[ParsedGate, GateSpec]]:
    for gate in spec.gates:
        parsed = parse_gate(gate.expression)
        if not _loses(parsed, left_out):
            yield parsed, gate


def _loses(gate: ParsedGate, left_out: frozenset[str]) -> bool:
    return any(address.check in left_out or address.on in left_out for address in gate.addresses)
