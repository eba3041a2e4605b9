"""What ``dp-train`` leaves: private weights, and a card that says what they are worth, in Markdown and JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..reports.markdown import table_of, text
from ..reports.record import AuditRecord, VariantRecord
from ..reports.writing import metric_label, metric_text
from .errors import OutputError, SpecError, UnsupportedError
from .loading.model import inner, load
from .reload import reload_variant
from .spec import Spec
from .storage import write_atomic
from .variants.base import Variant
from .variants.dp_sgd import DPSGDVariant

WEIGHTS, CARD, FACTS = "weights.safetensors", "card.md", "card.json"

_SETTINGS = (
    "start", "new_head", "scope", "epochs", "batch_size", "max_grad_norm", "clipping", "lr", "schedule", "optimizer",
    "momentum", "views", "ema", "precision", "secure_noise", "secret_seed", "trials", "lost_steps", "clip_norm",
)  # fmt: skip


def private_variants(spec: Spec) -> list[DPSGDVariant]:
    """The spec's private trainings.

    Raises:
        SpecError: when there is none.
    """
    found = [variant for variant in spec.variants if isinstance(variant, DPSGDVariant)]
    if not found:
        raise SpecError(
            "the spec has no private training: add one under variants, such as\n"
            "  - dp_sgd: {train: train.npz, epsilon: 8}"
        )
    return found


def refuse_several_processes(world_size: str | None) -> None:
    """Raises:
    UnsupportedError: under torchrun, where every process would write the same files.
    """
    if world_size is not None and world_size != "1":
        raise UnsupportedError(
            f"dp-train writes files and runs as one process, but WORLD_SIZE is {world_size}: start it without "
            "torchrun, or call auditorch.privacy.dp_sgd.dp_fine_tune in a script of your own, which shares the work"
        )


def write_private_models(record: AuditRecord, spec: Spec, output: Path) -> list[Path]:
    """Writes weights and cards: in ``output`` for a single private training, else in a folder for each.

    The weights are read back from the audit's evidence, so that what is handed over is what was audited.

    Raises:
        OutputError: when a file cannot be written or the evidence was changed.
    """
    configured = private_variants(spec)
    target, _ = load(spec, torch.device("cpu"))
    written = []
    for variant in configured:
        made = record.variant(variant.id)
        if made is None or made.status != "ok":
            continue
        module = inner(reload_variant(variant, made, target, output).module)
        weights = save({key: value.cpu().contiguous().clone() for key, value in sorted(module.state_dict().items())})
        facts = card_facts(record, made, variant, hashlib.sha256(weights).hexdigest())
        folder = output if len(configured) == 1 else output / variant.id
        contents = {
            WEIGHTS: weights,
            CARD: render_card(record, made, facts).encode(),
            FACTS: (json.dumps(facts, indent=2) + "\n").encode(),
        }
        for name, content in contents.items():
            write_atomic(folder / name, content)
            written.append(folder / name)
    if not written:
        raise OutputError("no private training was finished; the report says why")
    return written


def card_facts(record: AuditRecord, made: VariantRecord, variant: Variant, weights_sha256: str) -> dict[str, Any]:
    """Everything that the card says, as plain values."""
    values = {metric.name: metric.value for metric in made.metrics}
    parameters = made.parameters
    return {
        "schema_version": 1,
        "name": record.name,
        "variant": variant.id,
        "guarantee": {
            "epsilon": values.get("epsilon"),
            "delta": values.get("delta"),
            "unit": parameters.get("privacy_unit"),
            "accountant": parameters.get("accountant"),
            "epsilon_by_accountant": parameters.get("epsilon_by_accountant"),
            "epsilon_with_tuning": values.get("epsilon_with_tuning", values.get("epsilon")),
            "trials": parameters.get("trials"),
        },
        "mechanism": {name: values.get(name) for name in ("noise_multiplier", "sample_rate", "steps")},
        "settings": {name: parameters[name] for name in _SETTINGS if name in parameters},
        "sha256": {
            "weights": weights_sha256,
            "base_model": record.model.sha256,
            "training_data": parameters.get("train_sha256"),
            "test_data": record.data.sha256,
            "spec": record.spec_sha256,
        },
        "seed": None if parameters.get("secret_seed") else record.seed,
        "audit": {
            "verdict": record.verdict,
            "results": {
                result.id: {metric.name: metric.value for metric in result.metrics} or result.status
                for result in made.results
            },
        },
        "warnings": list(made.warnings),
        "tool": record.tool,
        "environment": record.environment,
    }


def render_card(record: AuditRecord, made: VariantRecord, facts: Mapping[str, Any]) -> str:
    """The card for people."""
    return "\n\n".join(_sections(record, made, facts)) + "\n"


def _sections(record: AuditRecord, made: VariantRecord, facts: Mapping[str, Any]) -> Iterator[str]:
    guarantee = facts["guarantee"]
    yield f"# {text(record.name)}: private weights"
    yield text(made.summary)
    yield (
        "The guarantee: whether any one record was in the training data changes the probability of any outcome by a "
        f"factor of at most e^{_number(guarantee['epsilon'])}, but for a probability of {_number(guarantee['delta'])}."
    )
    by = guarantee["epsilon_by_accountant"] or {}
    rows = [(name.upper(), _number(value)) for name, value in by.items()]
    yield "## Budget\n\n" + table_of(("Accountant", "epsilon"), rows)
    settings = [(name, _number(value)) for name, value in {**facts["mechanism"], **facts["settings"]}.items()]
    yield "## Mechanism and settings\n\n" + table_of(("Setting", "Value"), settings)
    audit = [
        (f"{result.id}: {metric_label(metric)}", metric_text(metric))
        for result in made.results
        for metric in result.metrics
    ]
    if audit:
        yield "## Audit of these weights\n\n" + table_of(("Measure", "Value"), audit)
    yield "## Files\n\n" + table_of(("What", "sha256"), [(name, str(value)) for name, value in facts["sha256"].items()])
    if made.warnings:
        yield "## What to know\n\n" + "\n".join(f"- {text(warning)}" for warning in made.warnings)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
