"""Variants from what an audit has kept of them."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from ..reports.record import Evidence, VariantRecord
from .cache import stable_hash
from .context import read_evidence
from .target import Target
from .variants.base import Variant


def reload_variant(variant: Variant, record: VariantRecord, base: Target, directory: Path) -> Target:
    """A variant from its recorded weights, in eval mode on the device of ``base``.

    Raises:
        OutputError: when the weights are missing or changed.
        RuntimeError: when they do not fit the structure that ``variant.wrap`` gives.
    """
    weights = next(item for item in record.evidence if item.kind == "weights")
    built = variant.as_built(record.parameters)
    module: nn.Module = built.wrap(copy.deepcopy(base.module))
    module.load_state_dict(read_evidence(directory, weights))
    module.to(base.device).eval()
    variant_hash = variant_sha256(variant, weights, base)
    return built.deployed(base.with_module(module, variant_hash, built.wrap, built.recipe()))


def variant_sha256(variant: Variant, weights: Evidence, base: Target) -> str:
    """Hash of what a variant's answers depend on: the base, its weights, and the treatment that wraps them."""
    config = variant.model_dump(mode="json", exclude={"id"})
    return stable_hash([base.sha256, variant.name, variant.version, config, weights.sha256])
