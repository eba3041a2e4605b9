"""A variant taken out of an audit: weights as the model's own factory loads them, and a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from ..reports.escaping import one_line
from ..reports.markdown import table_of, text
from ..reports.model_card import render_model_card
from ..reports.record import AuditRecord, Gate, VariantRecord
from ..reports.schema import read_record
from ..reports.writing import metric_label, metric_text
from . import registry
from .errors import OutputError, SpecError
from .gate_language import BASE
from .loading.model import inner, load
from .output import read_origin
from .reload import reload_variant
from .spec import parse_spec
from .storage import write_atomic
from .target import Target
from .variants.base import Variant

WEIGHTS, CARD, FACTS = "model.safetensors", "README.md", "variant.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """The files that were written, and whether the model's own factory can load the weights."""

    files: tuple[Path, ...]
    same_structure: bool


def export_variant(directory: Path, variant_id: str, output: Path, *, base: Path | None = None) -> Exported:
    """Writes the weights of a variant, its card, and its parameters into ``output``.

    The variant is reloaded from the evidence of the audit, whose hash is checked, so that what is exported is what was
    audited.

    Args:
        directory: the folder of the audit.
        base: the folder that the spec's relative paths start from; as the run noted it when None.

    Raises:
        AuditError: for an unknown or failed variant, changed evidence, or files that cannot be read or written.
    """
    record = read_record(directory)
    variant = _variant(record, variant_id)
    base = base or read_origin(directory)
    if base is None:
        raise OutputError(f"{directory}: the spec's folder is not known: give it with --base")
    spec = parse_spec(record.spec, base)
    target, _ = load(spec, torch.device("cpu"))
    if target.sha256 != record.model.sha256:
        raise OutputError(f"{record.model.source}: not the audited model: its hash differs from the record's")
    configured = next(one for one in spec.variants if one.id == variant_id)
    return write_export(record, variant, configured, target, directory, output)


def write_export(
    record: AuditRecord, variant: VariantRecord, configured: Variant, target: Target, directory: Path, output: Path
) -> Exported:
    """:func:`export_variant` where record and model are at hand.

    Raises:
        OutputError: when the evidence was changed, or a file cannot be written.
    """
    own = inner(target.module).state_dict()
    state = inner(reload_variant(configured, variant, target, directory).module).state_dict()
    same = {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in state.items()}
    contents = {
        WEIGHTS: save({key: state[key].detach().cpu().contiguous().clone() for key in sorted(state)}),
        CARD: _card(record, variant, same_structure=same).encode(),
        FACTS: (json.dumps(_facts(record, variant), indent=2) + "\n").encode(),
    }
    for name, content in contents.items():
        write_atomic(output / name, content)
    return Exported(tuple(output / name for name in contents), same)


def _variant(record: AuditRecord, variant_id: str) -> VariantRecord:
    known = [variant.id for variant in record.variants if variant.id != BASE]
    variant = record.variant(variant_id)
    if variant is None or variant_id == BASE:
        raise SpecError(registry.unknown("variant", variant_id, known) if known else "this audit has no variants")
    if variant.status != "ok":
        raise OutputError(f"variant {variant_id} has no weights: {variant.error}")
    return variant


def _card(record: AuditRecord, variant: VariantRecord, *, same_structure: bool) -> str:
    """The model card of the record narrowed to this variant, with how it was made in front."""
    gates = tuple(gate for gate in record.gates if _speaks_of(gate, variant.id))
    card = render_model_card(record.model_copy(update={"variants": (variant,), "gates": gates}))
    front, rest = card[: card.index("---\n", 4) + 4], card[card.index("---\n", 4) + 4 :]
    return f"{front}\n" + "\n\n".join(_making(record, variant, same_structure=same_structure)) + f"\n{rest}"


def _speaks_of(gate: Gate, variant_id: str) -> bool:
    return variant_id in (gate.variant, *(part.variant for part in gate.parts))


def _making(record: AuditRecord, variant: VariantRecord, *, same_structure: bool) -> Iterator[str]:
    yield f"# {text(one_line(record.name))}: {text(variant.title or variant.id)}"
    yield text(variant.summary)
    yield (
        f"Made from the model with sha256 `{record.model.sha256}`. "
        + (
            f"`{WEIGHTS}` fits the same factory as that model's weights."
            if same_structure
            else f"`{WEIGHTS}` does not fit that model's factory: the variant `{text(variant.kind)}` changes the "
            "structure. Load it through the audit's spec."
        )
    )
    rows = [(metric_label(metric), metric_text(metric)) for metric in variant.metrics]
    yield table_of(("What it is and what it took", ""), rows)
    yield from (f"> {text(warning)}" for warning in variant.warnings)


def _facts(record: AuditRecord, variant: VariantRecord) -> dict[str, object]:
    content = variant.model_dump(mode="json", include={"id", "kind", "summary", "parameters", "metrics", "warnings"})
    return {**content, "base_sha256": record.model.sha256, "tool": record.tool, "seed": record.seed}
