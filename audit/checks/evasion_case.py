"""What an evasion run starts from and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..samples import Samples
from .evasion_search import Search, Subject


@dataclass(frozen=True, slots=True)
class Case:
    """Samples with their labels ``(n,)``, clean logits ``(n, k)``, and what is attacked."""

    samples: Samples
    y: Tensor
    clean_logits: Tensor
    subject: Subject

    @property
    def correct(self) -> Tensor:
        return self.clean_logits.argmax(1) == self.y


def case_evidence(case: Case, search: Search, rows: Tensor) -> dict[str, Tensor]:
    """What ``verify`` needs; adversarial inputs only where the attack succeeded."""
    return {
        "ids": case.subject.ids,
        "labels": case.y,
        "goal": case.subject.goal.clone(),  # without targets it is the labels, and files hold no shared memory
        "clean_logits": case.clean_logits,
        "rows": rows,
        "x_adv": search.x_adv[rows],
        "adv_logits": search.logits[rows],
        "distance": search.distance[rows],
        "radius": search.radius[rows],
    }
