"""Re-checks an evasion result: data, clean predictions, ball and bounds, adversarial predictions, counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...attacks.threat import Threat
from ...reports.record import Result
from .base import Claim
from .evasion_case import Case
from .evasion_measures import Measured
from .evasion_search import module_logits
from .outputs import same_predictions

_ROUNDING = 1e-4


def verify_case(case: Case, recorded: Mapping[str, Tensor]) -> Iterator[Claim]:
    """Whether it is about these samples, and whether the model still says the same of them."""
    same = torch.equal(recorded["ids"], case.subject.ids) and torch.equal(recorded["labels"], case.y)
    yield Claim("the attack ran on the audited samples and labels", same)
    if same:
        agree = same_predictions(case.clean_logits, recorded["clean_logits"])
        yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)} samples")


def verify_inputs(case: Case, recorded: Mapping[str, Tensor], batch_size: int | None) -> Iterator[Claim]:
    """Whether each adversarial input lies where it should and does what it should."""
    rows, x_adv, radius = recorded["rows"], recorded["x_adv"], recorded["radius"]
    subject = case.subject
    x, bounds = subject.x[rows], subject.target.bounds
    inside = sum(
        int(Threat(subject.norm, eps, bounds=bounds).contains(x_adv[radius == eps], x[radius == eps]).sum())
        for eps in radius.unique().tolist()
    )
    yield Claim("adversarial inputs lie in ball and bounds", inside == len(rows), f"{inside} of {len(rows)}")
    hits = 0
    if len(rows):
        goal = recorded["goal"] if subject.targeted else case.y
        logits = module_logits(subject.target, x_adv, batch_size)
        hits = int(_errs(logits, goal[rows], targeted=subject.targeted).sum())
    yield Claim("the model errs on the adversarial inputs", hits == len(rows), f"{hits} of {len(rows)}")


def recounted(recorded: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Radius and distance ``(n,)`` of all samples, from the recorded successes alone."""
    correct = recorded["clean_logits"].argmax(1) == recorded["labels"]
    distance = torch.where(correct, float("inf"), 0.0)
    radius = distance.double()
    radius[recorded["rows"]], distance[recorded["rows"]] = recorded["radius"], recorded["distance"]
    return radius, distance


def verify_metrics(measured: Measured, result: Result) -> Iterator[Claim]:
    """Whether each count and size in the result follows from the recorded successes."""
    for again in measured.metrics():
        metric = result.metric(again.name)
        value = None if metric is None else metric.value
        same = value is None if again.value is None else value is not None and abs(value - again.value) <= 1e-6
        yield Claim(f"{again.name} follows from the adversarial inputs", same, f"{value}, recounted {again.value}")


def verify_gallery(case: Case, shown: Mapping[str, Tensor]) -> Claim:
    """Whether each clean image shown is one of the data's."""
    low, high = case.subject.target.bounds
    data = (case.subject.x - low) / (high - low)
    known = all(bool((data == image).flatten(1).all(1).any()) for image in shown["clean"])
    return Claim("the gallery's clean images are the data's", known)


def _errs(logits: Tensor, goal: Tensor, *, targeted: bool) -> Tensor:
    """Bool ``(n,)``: whether the goal is reached, where a near tie counts (see ``same_predictions``)."""
    slack = _ROUNDING * logits.abs().amax(1).clamp_min(1)
    margin = logits.scatter(1, goal[:, None], float("-inf")).amax(1) - logits.gather(1, goal[:, None])[:, 0]
    return (margin <= slack) if targeted else (margin >= -slack)
