"""Fast gradient method: one step, the cheapest attack there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..attack import Access, Model, Randomness
from ..losses import LossName, objective
from ..models import attacking
from ..projections import steepest_corner
from ..search import ActiveSet, attackable, fooled, forward, input_gradient
from ..streams import Streams
from ..threat import Threat


@dataclass(frozen=True, slots=True)
class FGSM:
    """https://arxiv.org/abs/1412.6572. One step to the point of ball and bounds where the linearised loss is highest.

    For linf without bounds that is ``x + eps * sign(gradient)``; for l2, l1 and l0 the same problem solved exactly.

    Args:
        random_start: take the gradient at a random point and step 1.25 times as far from there (arXiv 2001.03994).
        loss: ``ce``, ``margin`` or ``dlr``.

    Raises:
        UnsupportedError: when the model gives no gradients, or has too few classes for the loss.
    """

    random_start: bool = False
    loss: LossName = "ce"

    access: ClassVar[Access] = "gradients"

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        streams = Streams.of(generator, len(x), x.device)
        loss = objective(self.loss, targeted=threat.targeted)
        with attacking(model):
            search = ActiveSet(x, attackable(model, x, y, targeted=threat.targeted))
            if len(search) == 0:
                return search.x_adv
            rows = search.index
            centre, label = x[rows], y[rows]
            start = threat.random_start(centre, streams.select(rows)) if self.random_start else centre
            logits, before, gradient = input_gradient(model, start, lambda z: loss(z, label))
            search.record(start, fooled(logits, label, targeted=threat.targeted))
            search.attempt(start, before)
            point = steepest_corner(centre, gradient, threat.norm, threat.eps, threat.bounds)
            if self.random_start:
                point = threat.project(start + 1.25 * (point - centre), centre)
            logits = forward(model, point)
            search.record(point, fooled(logits, label, targeted=threat.targeted))
            search.attempt(point, loss(logits, label))
        return search.x_adv
