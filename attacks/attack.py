"""What an attack is, and what running one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import UnsupportedError
from .streams import Streams
from .threat import NORMS, Threat

Model = Callable[[Tensor], Tensor]
"""Maps inputs ``(n, ...)`` within the threat's bounds to logits ``(n, k)``; usually an ``nn.Module``."""

Randomness = torch.Generator | Streams | None
"""A generator, one stream per sample, or None for seed 0."""


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters and whose call is the attack.

    ``attack(model, x, y, threat, generator=g)`` returns ``x_adv`` with the shape, dtype and device of ``x``,
    inside the ball and bounds of ``threat`` (a smallest-perturbation attack may leave the ball; it says so by
    ``minimal = True``), with the gradient state and train/eval mode of ``model`` left as found.
    A sample that is already misclassified (or, targeted, already in its target class) comes back unchanged.
    A sample for which nothing was found comes back as the best attempt.

    An attack may declare, as class attributes: ``norms``, the norms it knows (default: all); ``access``, what it
    needs of the model, ``gradients`` (default), ``scores`` or ``labels``; and ``minimal`` (default: false).
    """

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> Tensor: ...


Access = Literal["gradients", "scores", "labels"]
Unit = Literal["steps", "queries", "passes"]
"""What an attack's progress on a sample is counted in: points examined with their gradient, model evaluations of an
attack that needs no gradients, or forward passes of one that mixes both kinds."""


@runtime_checkable
class Traced(Protocol):
    """An attack that also tells what each sample took, so that one run draws robust accuracy against effort."""

    unit: Unit

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: units spent on each sample until it fell within eps, else in all."""
        ...


def check_norm(attack: object, threat: Threat) -> None:
    """Refuses a norm that the attack does not declare.

    Raises:
        UnsupportedError: naming the norms it knows.
    """
    known = getattr(attack, "norms", NORMS)
    if threat.norm not in known:
        raise UnsupportedError(f"{type(attack).__name__} knows the norms {', '.join(known)}, not {threat.norm}")


@dataclass(frozen=True, slots=True)
class AttackOutcome:
    """What :func:`~auditorch.attacks.engine.evaluate` found; tensors live on the CPU.

    Attributes:
        x_adv: ``(n, ...)``, the adversarial input where ``distance`` is finite, otherwise the clean input.
        success: bool ``(n,)``, true where the model errs on ``x_adv`` and ``x_adv`` lies in the ball, re-verified in
            float32 eager mode. Inputs misclassified from the start count, at distance 0.
        distance: float32 ``(n,)`` in the threat's norm; infinity where nothing was found. A smallest-perturbation
            attack may report distances beyond the ball: not a success, but a point of the curve.
        correct: bool ``(n,)``, whether the clean input was classified as labelled (targeted: was not yet in the
            target class).
        clean_logits, adv_logits: float32 ``(n, k)`` on ``x`` and on ``x_adv``.
        forwards, backwards: samples passed through the model forwards and backwards by the attack itself.
        verification_forwards: samples passed through the model for the clean prediction and the re-verification.
        examined: bool ``(n,)``, false where a budget ended before the sample's turn.
        seconds: wall time.
        unit: ``steps``, ``queries`` or ``passes`` where the attack counts them (see :class:`Traced`), else None.
        spent: int64 ``(n,)``, units spent on each sample until it fell within eps, or in all where it stands.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    correct: Tensor
    clean_logits: Tensor
    adv_logits: Tensor
    forwards: int
    backwards: int
    verification_forwards: int
    examined: Tensor
    seconds: float
    unit: Unit | None
    spent: Tensor

    @property
    def queries(self) -> int:
        """Model evaluations, the unit in which black-box attacks are compared."""
        return self.forwards

    @property
    def robust_accuracy(self) -> float:
        """Share of examined samples classified correctly before and after the attack."""
        return float((~self.success[self.examined]).double().mean())

    def robust_accuracy_at(self, eps: float) -> float:
        """Share of examined samples with no adversarial input within ``eps``: the curve of a smallest-perturbation run.

        After an attack at a fixed radius this is an upper bound at smaller ``eps``.
        """
        return float((self.distance[self.examined] > eps).double().mean())

    def robust_accuracy_after(self, spent: int) -> float:
        """Share of examined samples that stand after ``spent`` units on each: the curve against effort.

        Raises:
            UnsupportedError: when the attack does not count them.
        """
        if self.unit is None:
            raise UnsupportedError(
                "this attack does not say what it spent on each sample: use auto, autoattack, pgd, apgd, fmn or square"
            )
        fell = self.success & (self.spent <= spent)
        return float((~fell[self.examined]).double().mean())

    @classmethod
    def merge(cls, parts: Sequence[AttackOutcome], *, inputs: bool = True) -> AttackOutcome:
        """One outcome for all samples of several, in order.

        Args:
            inputs: whether to keep ``x_adv``; without, it is empty, and what is kept is a few numbers a sample.

        Raises:
            UnsupportedError: for no parts, or parts of attacks that count in different units.
        """
        if not parts or len({part.unit for part in parts}) > 1:
            raise UnsupportedError("only outcomes of one attack can be merged, and at least one of them")

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        return cls(
            x_adv=joined("x_adv") if inputs else parts[0].x_adv[:0],
            success=joined("success"),
            distance=joined("distance"),
            correct=joined("correct"),
            clean_logits=joined("clean_logits"),
            adv_logits=joined("adv_logits"),
            forwards=sum(part.forwards for part in parts),
            backwards=sum(part.backwards for part in parts),
            verification_forwards=sum(part.verification_forwards for part in parts),
            examined=joined("examined"),
            seconds=sum(part.seconds for part in parts),
            unit=parts[0].unit,
            spent=joined("spent"),
        )
