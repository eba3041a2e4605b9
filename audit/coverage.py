"""What an audit did not examine: silence must not read as safety."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..reports.record import VariantRecord
from . import registry
from .gates import BASE
from .plan import Plan
from .spec import Spec


def not_covered(
    spec: Spec, plan: Plan, variants: Sequence[VariantRecord], *, interrupted: bool = False
) -> tuple[str, ...]:
    """Sentences on what was left out, broke or lies outside of the checks, without repetition."""
    sentences = [
        *(["The audit was interrupted before it finished."] if interrupted else []),
        *_unfinished(variants),
        *_narrowed(plan),
        *_dropped(plan),
        *_not_asked(spec),
        *_limits(spec),
        *(text for variant in variants for result in variant.results for text in result.not_covered),
    ]
    return tuple(dict.fromkeys(sentences))


def _unfinished(variants: Sequence[VariantRecord]) -> Iterator[str]:
    for variant in variants:
        if variant.status != "ok":
            yield f"Variant {variant.id}: {_sentence(variant.error)}"
            continue
        for result in variant.results:
            if result.status != "ok":
                yield f"{result.title} ({result.id}) on {variant.id}: {_sentence(result.error)}"


def _narrowed(plan: Plan) -> Iterator[str]:
    everywhere = [BASE, *(variant.id for variant in plan.variants)]
    for check in plan.checks:
        if check.variants is not None:
            without = [name for name in everywhere if name not in check.variants]
            if without:
                yield f"{check.title} ({check.id}) was not asked for on {', '.join(without)}."


def _dropped(plan: Plan) -> Iterator[str]:
    if plan.left_out:
        yield f"Left out on the command line: {', '.join(sorted(plan.left_out))}."
    for expression in plan.dropped_gates:
        yield f"The gate {expression} was not judged: what it needs was left out on the command line."


def _not_asked(spec: Spec) -> Iterator[str]:
    asked = {check.name for check in spec.checks}
    missing = [name for name in registry.names("checks") if name not in asked]
    if missing:
        yield f"Checks that the spec does not ask for: {', '.join(missing)}."


def _limits(spec: Spec) -> Iterator[str]:
    if spec.data.limit is not None:
        yield f"Samples beyond a random subset of at most {spec.data.limit} (data.limit)."


def _sentence(text: str) -> str:
    text = text.strip() or "not run"
    return text if text.endswith((".", "!", "?")) else f"{text}."
