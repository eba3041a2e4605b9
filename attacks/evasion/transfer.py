"""Transfer attack: adversarial inputs made for a surrogate, shown to the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..ball import Ball, movable, unit
from ..errors import UnsupportedError
from ..losses import Loss, LossName, objective
from ..models import attacking
from ..search import ActiveSet, attackable, fooled, forward, input_gradient
from ..streams import Streams
from ..threat import Norm, Threat
from .input_diversity import diverse_inputs
from .translation_invariance import smoothed


@dataclass(frozen=True, slots=True)
class Transfer:
    """Momentum, diverse inputs and translation invariance (arXiv 1710.06081, 1803.06978, 1904.02884).

    All gradients are the surrogate's; of the model only labels are asked for, a few times a sample. A step goes along
    the sum of the gradients so far, each taken on an input that is shrunk and padded at random, smoothed over the
    image and divided by its l1 norm. Vectors are neither shrunk nor smoothed.

    Args:
        surrogate: a model for the same task, on the same device, with the same order of classes: the user's, or one
            that :func:`~auditorch.attacks.surrogate.extract_surrogate` trained by asking the model.
        steps: gradient steps on the surrogate, >= 1.
        queries: how many points along the way are shown to the model, the last always.
        decay: weight of the gradients summed up so far.
        diversity: chance that an input is shrunk before its gradient is taken.
        shrink: the smallest size that it is shrunk to, as a share.
        kernel: side of the Gaussian that smooths gradients, odd; 1: none.
        loss: ``ce``, ``margin`` or ``dlr``.
    """

    surrogate: nn.Module | None = field(default=None, repr=False, compare=False)
    steps: int = 20
    queries: int = 5
    decay: float = 1.0
    diversity: float = 0.5
    shrink: float = 0.85
    kernel: int = 5
    loss: LossName = "ce"

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    access: ClassVar[Access] = "labels"
    unit: ClassVar[Unit] = "queries"
    __pydantic_config__: ClassVar[dict[str, bool]] = {"arbitrary_types_allowed": True}

    def __post_init__(self) -> None:
        if not 1 <= self.queries <= self.steps:
            raise UnsupportedError("a transfer attack needs 1 <= queries <= steps")
        if not 0 <= self.diversity <= 1 or not 0 < self.shrink <= 1 or self.decay < 0:
            raise UnsupportedError("a transfer attack needs diversity in [0, 1], shrink in (0, 1] and decay >= 0")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UnsupportedError(f"kernel is {self.kernel}: give an odd number of pixels, 1 for no smoothing")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """Adversarial inputs in the shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`.

        Raises:
            UnsupportedError: without a surrogate, or when the surrogate gives no gradients.
        """
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: queries of the model for each sample until it fell, else in all."""
        check_norm(self, threat)
        if self.surrogate is None:
            raise UnsupportedError("a transfer attack needs a surrogate: give one, or let extract_surrogate train one")
        streams = Streams.of(generator, len(x), x.device)
        loss = objective(self.loss, targeted=threat.targeted)
        shown = {self.steps - 1 - i * self.steps // self.queries for i in range(self.queries)}
        with attacking(model), attacking(self.surrogate):
            search = ActiveSet(x, attackable(model, x, y, targeted=threat.targeted))
            if len(search) == 0:
                return search.x_adv, search.spent
            ball, label, own = Ball.around(x.detach()[search.index], threat), y[search.index], search.index
            point, momentum = ball.x.clone(), torch.zeros_like(ball.x)
            for step in range(self.steps):
                gradient = self._gradient(point, label, streams.select(own).fork(step), loss)
                momentum = self.decay * momentum + gradient
                point = self._step(ball, point, momentum)
                if step in shown:
                    search.record(point, fooled(forward(model, point), label, targeted=threat.targeted))
                    keep = search.compact()
                    if keep is not None:
                        if len(keep) == 0:
                            break
                        point, momentum, ball = point[keep], momentum[keep], ball.select(keep)
                        label, own = label[keep], own[keep]
            else:  # of a sample that stands, the last point is the best attempt
                search.attempt(point, torch.zeros_like(label))
        return search.x_adv, search.spent

    def _gradient(self, point: Tensor, label: Tensor, streams: Streams, loss: Loss) -> Tensor:
        assert self.surrogate is not None
        surrogate = self.surrogate

        def seen(z: Tensor) -> Tensor:
            return surrogate(diverse_inputs(z, streams, self.diversity, self.shrink) if z.dim() == 4 else z)

        _, _, gradient = input_gradient(seen, point, lambda logits: loss(logits, label))
        if point.dim() == 4:
            gradient = smoothed(gradient, self.kernel)
        size = gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        return gradient / size.view(-1, *[1] * (gradient.dim() - 1))

    def _step(self, ball: Ball, point: Tensor, momentum: Tensor) -> Tensor:
        threat = ball.threat
        free = movable(momentum, point, threat.bounds) if threat.norm == "l2" else momentum
        # Steps add up to twice the radius, so that a bend in the path does not end it inside the ball.
        return ball.project(torch.add(point, unit(free, threat.norm), alpha=2 * threat.eps / self.steps))
