"""Whether gradients can be believed on this model, and what runs in place of `auto` where they cannot."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...attacks.attack import Attack
from ...attacks.evasion.apgd import APGD, APGDT
from ...attacks.evasion.autoattack import AutoAttack
from ...attacks.evasion.square import Square
from ...attacks.masking import Diagnosis, diagnose
from ...attacks.threat import Threat
from ...reports.record import Finding
from .evasion_case import Case

_SAMPLES = 64


def diagnosed(case: Case, eps: float, seed: int, batch_size: int | None) -> Diagnosis | None:
    """The diagnosis on at most 64 correctly classified samples, evenly spaced; None when there are none."""
    right, subject = case.correct.nonzero().squeeze(1), case.subject
    if len(right) == 0:
        return None
    count = min(len(right), _SAMPLES)
    rows = right[torch.arange(count) * len(right) // count]
    threat = Threat(subject.norm, eps, bounds=subject.target.bounds)
    x, y = (tensor[rows].to(subject.target.device) for tensor in (subject.x, case.y))
    return diagnose(subject.target.module, x, y, threat, seed=seed, samples=_SAMPLES, batch_size=batch_size)


def full_protocol(diagnosis: Diagnosis, *, targeted: bool) -> dict[str, Attack]:
    """The strongest attacks that a masked model allows, by name, each to run on what withstood those before."""
    if diagnosis.has("no_gradient"):
        return {"square": Square()}
    if targeted:
        return {"apgd": APGD(), "apgd_t": APGDT(), "square": Square()}
    return {"autoattack": AutoAttack("rand" if diagnosis.has("randomised") else "standard")}


def flag_findings(diagnosis: Diagnosis, standards: tuple[str, ...]) -> Iterator[Finding]:
    """One finding for each flag."""
    for flag in diagnosis.flags:
        doubt = "Possible gradient masking" if flag.severity == "high" else "Doubt about the robust accuracy"
        yield Finding(
            severity=flag.severity,
            title=f"{doubt}: {flag.title}",
            detail=flag.detail,
            remedy=flag.remedy,
            standards=standards,
        )
