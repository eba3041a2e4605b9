"""Certification by bounds on the logits (IBP, CROWN), beside an attack on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attacks.engine import evaluate
from ...attacks.evasion.pgd import PGD
from ...attacks.losses import margin
from ...defenses.certificates.certify import Method, certified
from .base import Claim, Context
from .certification_case import Case, in_ball, some_rows
from .certification_measures import Measured
from .evasion_search import module_logits
from .outputs import require_finite, same_predictions

_TITLES: dict[Method, str] = {"ibp": "interval bounds", "crown_ibp": "CROWN-IBP", "crown": "CROWN"}
_AGAIN = 32
"""Samples that ``verify`` bounds again, at most."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Certifies with ``method`` and attacks with ``steps`` of PGD, twice."""

    method: Method
    steps: int
    batch_size: int | None

    @property
    def title(self) -> str:
        return _TITLES[self.method]

    @property
    def caveats(self) -> tuple[str, ...]:
        return (
            "Bounds are computed in float32: the proof is of the network in exact arithmetic, with a margin of 1e-5 of "
            "the logits for rounding.",
            "A sample that is not certified may be robust all the same: bounds are loose, the more so the deeper.",
        )

    def examine(self, case: Case, context: Context) -> dict[str, Tensor]:
        size = self.batch_size or context.batch_size
        logits = module_logits(case.target, case.x, size)
        require_finite(logits, case.samples)
        correct = logits.argmax(1) == case.y
        context.progress.start(self.title, len(case) * len(case.radii))
        proven, left = [], correct.nonzero().squeeze(1)
        for eps in case.radii:
            held = self._proven(case, left, eps)
            proven.append(torch.zeros(len(case), dtype=torch.uint8).index_fill_(0, left[held], 1))
            context.progress.advance(len(case))
            left = left[held]  # what is unproven in a small ball is unproven in a larger one
        outcome = evaluate(
            PGD(steps=self.steps, restarts=2),
            case.target.module,
            case.x,
            case.y,
            case.threat(case.eps),
            seed=context.seed,
            ids=case.ids,
            batch_size=size,
            device=case.target.device,
        )
        rows = (correct & outcome.success).nonzero().squeeze(1)
        return {
            "ids": case.ids,
            "labels": case.y,
            "clean_logits": logits,
            "proven": torch.stack(proven),
            "rows": rows,
            "x_adv": outcome.x_adv[rows],
        }

    def measured(self, case: Case, evidence: Mapping[str, Tensor]) -> Measured:
        broken = torch.zeros(len(case), dtype=torch.bool).index_fill_(0, evidence["rows"], True)
        correct = (evidence["clean_logits"].argmax(1) == evidence["labels"]).numpy()
        proven = evidence["proven"].bool().numpy()
        return Measured(correct, proven, broken.numpy(), case.norm, case.eps, case.radii)

    def claims(self, case: Case, evidence: Mapping[str, Tensor], context: Context) -> Iterator[Claim]:
        size = self.batch_size or context.batch_size
        agree = same_predictions(module_logits(case.target, case.x, size), evidence["clean_logits"])
        yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)} samples")
        rows = evidence["rows"]
        yield in_ball(case, evidence["x_adv"], rows)
        hits = 0
        if len(rows):
            hits = _hits(module_logits(case.target, evidence["x_adv"], size), case.y[rows])
        yield Claim("the model errs on the adversarial inputs", hits == len(rows), f"{hits} of {len(rows)}")
        proven = evidence["proven"].bool()
        for place, eps in enumerate(case.radii):
            claimed = proven[place].nonzero().squeeze(1)
            some = claimed[some_rows(len(claimed), _AGAIN)]
            again = int(self._proven(case, some, eps).sum()) if len(some) else 0
            detail = f"{again} of {len(some)} looked at again"
            yield Claim(f"what is certified at {eps:.4g} can be proven again", again == len(some), detail)

    def _proven(self, case: Case, rows: Tensor, eps: float) -> Tensor:
        device = case.target.device
        x, y = case.x[rows].to(device), case.y[rows].to(device)
        return certified(case.target.module, x, y, case.threat(eps), self.method, batch_size=self.batch_size).cpu()


def _hits(logits: Tensor, y: Tensor) -> int:
    """How many of the predictions are wrong, near ties counting."""
    slack = 1e-4 * logits.abs().amax(1).clamp_min(1)
    return int((margin(logits, y) >= -slack).sum())
