"""Names of everything that a spec can ask for: built-ins in one lazy table, third parties through entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from ..attacks.evasion.art.refused import REFUSED
from .errors import SpecError, UnsupportedError

Kind = Literal["checks", "attacks", "defenses"]

BUILTIN: dict[Kind, dict[str, str]] = {
    "checks": {
        "performance": "audit.checks.performance:Performance",
        "evasion": "audit.checks.evasion:Evasion",
        "attribution": "audit.checks.attribution:Attribution",
        "membership": "audit.checks.membership:Membership",
        "dp": "audit.checks.dp:DPAudit",
        "extraction": "audit.checks.extraction:ExtractionCheck",
        "inversion": "audit.checks.inversion:Inversion",
        "attribute_inference": "audit.checks.attribute_inference:AttributeInference",
        "overlap": "audit.checks.overlap:Overlap",
        "corruption": "audit.checks.corruption:Corruption",
        "shift": "audit.checks.shift:Shift",
        "patch": "audit.checks.patch:PatchCheck",
        "universal": "audit.checks.universal:Universal",
        "certification": "audit.checks.certification:Certification",
        "transfer": "audit.checks.transfer:Transfer",
        "model_file": "audit.checks.model_file:ModelFile",
        "text_evasion": "audit.checks.text_evasion:TextEvasion",
        "text_attribution": "audit.checks.text_attribution:TextAttribution",
        "text_trigger": "audit.checks.text_trigger:TextTrigger",
        "text_corruption": "audit.checks.text_corruption:TextCorruption",
        "behaviour": "audit.checks.behaviour:Behaviour",
        "slices": "audit.checks.slices:Slices",
        "canary_exposure": "audit.checks.canary_exposure:CanaryExposure",
        "text_certification": "audit.checks.text_certification:TextCertification",
    },
    "attacks": {
        "fgsm": "attacks.evasion.fgsm:FGSM",
        "pgd": "attacks.evasion.pgd:PGD",
        "auto": "attacks.evasion.auto:Auto",
        "autoattack": "attacks.evasion.autoattack:AutoAttack",
        "square": "attacks.evasion.square:Square",
        "mifgsm": "attacks.evasion.mifgsm:MIFGSM",
        "apgd": "attacks.evasion.apgd:APGD",
        "apgd_t": "attacks.evasion.apgd:APGDT",
        "deepfool": "attacks.evasion.deepfool:DeepFool",
        "superdeepfool": "attacks.evasion.deepfool:SuperDeepFool",
        "cw": "attacks.evasion.cw:CarliniWagner",
        "ddn": "attacks.evasion.ddn:DDN",
        "fmn": "attacks.evasion.fmn:FMN",
        "fab": "attacks.evasion.fab:FAB",
        "fab_t": "attacks.evasion.fab:FABT",
        "sigma_zero": "attacks.evasion.sigma_zero:SigmaZero",
        "hopskipjump": "attacks.evasion.hopskipjump:HopSkipJump",
        "transfer": "attacks.evasion.transfer:Transfer",
        "hopskipjump_art": "attacks.evasion.art_adapter:HopSkipJumpART",
        "boundary_art": "attacks.evasion.art.black_box:BoundaryART",
        "signopt_art": "attacks.evasion.art.black_box:SignOPTART",
        "simba_art": "attacks.evasion.art.black_box:SimBAART",
        "zoo_art": "attacks.evasion.art.black_box:ZOOART",
        "ead_art": "attacks.evasion.art.white_box:EADART",
        "jsma_art": "attacks.evasion.art.white_box:JSMAART",
        "newtonfool_art": "attacks.evasion.art.white_box:NewtonFoolART",
    },
    "defenses": {
        "adversarial_training": "audit.variants.adversarial_training:AdversarialTrainingVariant",
        "regularization": "audit.variants.regularization:RegularizationVariant",
        "fine_tuning": "audit.variants.fine_tuning:FineTuningVariant",
        "distillation": "audit.variants.distillation:DistillationVariant",
        "dp_sgd": "audit.variants.dp_sgd:DPSGDVariant",
        "randomized_smoothing": "audit.variants.randomized_smoothing:RandomizedSmoothingVariant",
        "preprocessing": "audit.variants.preprocessing:PreprocessingVariant",
        "ensemble": "audit.variants.ensemble:EnsembleVariant",
        "pruning": "audit.variants.pruning:PruningVariant",
        "quantization": "audit.variants.quantization:QuantizationVariant",
        "low_rank": "audit.variants.low_rank:LowRankVariant",
        "student": "audit.variants.student:StudentVariant",
        "sweep": "audit.variants.sweep:SweepVariant",
        "freelb": "audit.variants.freelb:FreeLBVariant",
        "text_augmentation": "audit.variants.text_augmentation:TextAugmentationVariant",
        "random_mask": "audit.variants.random_mask:RandomMaskVariant",
    },
}
"""Relative to the package that holds the five folders; each value is ``module:attribute``."""

_PACKAGE = __name__.rsplit(".", 2)[0]


def names(kind: Kind) -> tuple[str, ...]:
    """All registered names, built-ins first, nothing imported."""
    return (*BUILTIN[kind], *(entry.name for entry in _extensions(kind) if entry.name not in BUILTIN[kind]))


def load(kind: Kind, name: str) -> Any:
    """The class registered under ``name``.

    Raises:
        SpecError: for an unknown name, with the nearest one.
        UnsupportedError: for an attack known not to work here, with the reason.
    """
    if name in BUILTIN[kind]:
        module, attribute = BUILTIN[kind][name].split(":")
        return getattr(import_module(f"{_PACKAGE}.{module}"), attribute)
    for entry in _extensions(kind):
        if entry.name == name:
            return entry.load()
    if kind == "attacks" and name in REFUSED:
        raise UnsupportedError(f"attack {name!r} is not offered: {REFUSED[name]}")
    raise SpecError(unknown(kind.removesuffix("s"), name, names(kind)))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: ``unknown check 'evason'. Did you mean 'evasion'?``"""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}."
    return f"unknown {what} {name!r}. {hint}"


def _extensions(kind: Kind) -> Iterable[Any]:
    return entry_points(group=f"auditorch.{kind}")
