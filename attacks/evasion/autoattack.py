"""AutoAttack: the ensemble that published robust accuracies are measured with, to the letter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..errors import UnsupportedError
from ..models import attacking
from ..search import fooled, forward
from ..streams import Streams
from ..threat import Norm, Threat
from .apgd import APGD, APGDT
from .eot import EOT
from .fab import FAB, FABT
from .square import Square

Version = Literal["standard", "plus", "rand"]
Member = APGD | APGDT | FAB | FABT | Square | EOT

_PASSES: dict[type, int] = {FAB: 2, FABT: 2}
"""Forward passes for each unit that a member counts, where it is not one: a step of FAB sees its point twice."""


@dataclass(frozen=True, slots=True)
class AutoAttack:
    """https://arxiv.org/abs/2003.01690, and https://arxiv.org/abs/2103.01208 for l1.

    Each attack runs on the samples that withstood the ones before. ``standard``: APGD on cross-entropy, APGD-T, FAB-T,
    Square. ``plus``: APGD on cross-entropy and on DLR and FAB with five restarts each, Square, APGD-T, FAB-T. ``rand``,
    for randomised models: APGD on cross-entropy and on DLR, gradients averaged over 20 draws. In l1, APGD starts in
    larger balls, with five restarts and five targets. Fewer classes than DLR needs: the margin takes its place.

    Args:
        version: ``standard``, ``plus`` or ``rand``.
        steps: gradient steps of each APGD and FAB run.
        queries: of Square, at most.

    Raises:
        UnsupportedError: for l0, for a targeted threat, or when the model gives no gradients.
    """

    version: Version = "standard"
    steps: int = 100
    queries: int = 5000

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "gradients"
    unit: ClassVar[Unit] = "passes"

    def __post_init__(self) -> None:
        if self.version not in get_args(Version):
            raise UnsupportedError(f"version is {self.version!r}: choose one of {', '.join(get_args(Version))}")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: forward passes of each sample until it fell, else in all.

        Counted are the passes that search; those that rank classes, pull points in and confirm them are not.
        """
        check_norm(self, threat)
        if threat.targeted:
            raise UnsupportedError("autoattack is untargeted: use apgd or apgd_t for a targeted threat")
        x_adv, spent = x.clone(), torch.zeros_like(y)
        if len(x) == 0:
            return x_adv, spent
        streams = Streams.of(generator, len(x), x.device)
        with attacking(model):
            logits = forward(model, x)
            left = (~fooled(logits, y, targeted=False)).nonzero().squeeze(1)
            for place, attack in enumerate(self.members(threat.norm, logits.shape[1])):
                if len(left) == 0:
                    break
                found, took = attack.trace(model, x[left], y[left], threat, generator=streams.select(left).fork(place))
                spent[left] += took * _PASSES.get(type(attack), 1)
                hit = fooled(forward(model, found), y[left], targeted=False) & threat.contains(found, x[left])
                x_adv[left[hit]] = found[hit]
                left = left[~hit]
        return x_adv, spent

    def members(self, norm: Norm, k: int) -> Iterator[Member]:
        """The attacks in their order, for a norm and ``k`` classes."""
        l1 = norm == "l1"
        restarts = 5 if l1 or self.version == "plus" else 1
        ce = APGD(self.steps, "ce", restarts, large_radius=l1)
        dlr = APGD(self.steps, "dlr" if k >= 3 else "margin", restarts, large_radius=l1)
        if self.version == "rand":
            yield from (EOT(APGD(self.steps, attack.loss, large_radius=l1), draws=20) for attack in (ce, dlr))
            return
        targeted = [
            APGDT(self.steps, n_targets=5 if l1 else 9, large_radius=l1),
            FABT(self.steps, inside=True, n_targets=9),
        ]
        square = Square(self.queries)
        if self.version == "standard":
            yield from (ce, *targeted, square)
        else:
            yield from (ce, dlr, FAB(self.steps, restarts=5, inside=True), square, *targeted)
