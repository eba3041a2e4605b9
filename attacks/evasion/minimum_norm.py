"""What smallest-perturbation attacks share: the closest point found, and balls whose radius differs by sample."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Access, Model, Randomness, Unit, check_norm
from ..errors import UnsupportedError
from ..models import attacking, check_logits
from ..search import NO_GRADIENT, attackable, fooled, forward
from ..threat import Norm, Threat
from .hyperplane import step_to_hyperplane


class MinimumNorm:
    """An attack that looks for the smallest perturbation, with no randomness and no restarts.

    What is left to say for a subclass is :meth:`_search`.
    """

    __slots__ = ()

    access: ClassVar[Access] = "gradients"
    minimal: ClassVar[bool] = True
    unit: ClassVar[Unit] = "steps"

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        """The closest adversarial inputs found, shape of ``x``; see :class:`~auditorch.attacks.attack.Attack`."""
        return self.trace(model, x, y, threat, generator=generator)[0]

    def trace(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None
    ) -> tuple[Tensor, Tensor]:
        """What the call gives, and int64 ``(n,)``: points examined of each sample until one lay within eps, else in
        all. The bisection at the end is not counted.

        Raises:
            UnsupportedError: for a norm that the attack does not know, and models that give no gradients.
        """
        del generator  # nothing is random
        self._check(threat)
        x_adv, spent = x.detach().clone(), torch.zeros_like(y)
        with attacking(model):
            rows = attackable(model, x, y, targeted=threat.targeted).nonzero().squeeze(1)
            if len(rows):
                closest = self._search(model, x.detach()[rows], y[rows], threat)
                x_adv[rows], spent[rows] = closest.x_adv, closest.spent
        return x_adv, spent

    def _check(self, threat: Threat) -> None:
        check_norm(self, threat)

    def _search(self, model: Model, x: Tensor, y: Tensor, threat: Threat) -> Closest:
        """Searches on samples not yet misclassified, with the model in eval mode and its parameters frozen."""
        raise NotImplementedError


class Closest:
    """The closest fooling point found for each sample of a batch.

    Attributes:
        x: ``(n, ...)``, the clean inputs.
        x_adv: ``(n, ...)``, the closest points; the clean input where none was found.
        distance: ``(n,)`` in the norm of the threat; infinity where none was found.
        spent: int64 ``(n,)``, points recorded until one lay within eps, or so far.
    """

    def __init__(self, x: Tensor, threat: Threat) -> None:
        self.x, self.threat = x, threat
        self.x_adv = x.clone()
        self.spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.distance = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)

    def record(self, points: Tensor, hit: Tensor, rows: Tensor | None = None) -> Tensor:
        """Keeps ``points`` ``(m, ...)`` that fool (``hit``, bool ``(m,)``) and are closer than before.

        Args:
            points: inside the bounds.
            hit: which of them fool the model.
            rows: int64 ``(m,)``, which samples they belong to; None: all, in order.

        Returns:
            Bool ``(m,)``, where the record was beaten.
        """
        rows = torch.arange(len(self.x), device=self.x.device) if rows is None else rows
        self.spent[rows] += self.distance[rows] > self.threat.eps
        return self._keep(points, hit, rows)

    def _keep(self, points: Tensor, hit: Tensor, rows: Tensor) -> Tensor:
        distance = self.threat.distance(points, self.x[rows])
        better = hit & (distance < self.distance[rows])
        self.x_adv[rows] = torch.where(column(better, points), points, self.x_adv[rows])
        self.distance[rows] = torch.where(better, distance, self.distance[rows])
        return better

    @property
    def found(self) -> Tensor:
        """Bool ``(n,)``."""
        return self.distance.isfinite()

    def tighten(self, model: Model, y: Tensor, steps: int = 10) -> Closest:
        """Pulls what was found towards the clean input by bisection, ``steps`` forward passes, not counted.

        Along the line to the clean input; for linf by clipping the perturbation, which moves only its largest
        entries; for l0 by undoing its smallest entries.
        """
        rows = self.found.nonzero().squeeze(1)
        if len(rows) == 0:
            return self
        x, best, size = self.x[rows], self.x_adv[rows], self.distance[rows]
        low, high = torch.zeros_like(size), torch.ones_like(size)
        for _ in range(steps):
            middle = (low + high) / 2
            points = self._shrunk(best, x, middle, size)
            hit = fooled(forward(model, points), y[rows], targeted=self.threat.targeted)
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
            self._keep(points, hit, rows)
        return self

    def _shrunk(self, points: Tensor, x: Tensor, share: Tensor, size: Tensor) -> Tensor:
        match self.threat.norm:
            case "linf":
                radius = column(share * size, x)
                points = torch.clamp(points, x - radius, x + radius)
            case "l0":
                kept = keep_largest((points - x).flatten(1), share * size).view_as(x) != 0
                points = torch.where(kept, points, x)
            case _:
                points = x + column(share, x) * (points - x)
        return points.clamp(*self.threat.bounds)


def column(values: Tensor, like: Tensor) -> Tensor:
    """``values`` ``(n,)`` shaped to multiply ``like`` ``(n, ...)``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Cosine annealing from ``start`` at step 0 to ``end`` at the last of ``steps``."""
    return end + (start - end) * (1 + math.cos(math.pi * step / max(steps - 1, 1))) / 2


def project_to_radius(delta: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """Nearest point of the ball of each sample's own ``radius`` ``(n,)``; shape of ``delta``."""
    flat, r = delta.flatten(1), radius[:, None]
    match norm:
        case "linf":
            flat = torch.clamp(flat, -r, r)
        case "l2":
            flat = flat * (r / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
        case "l1":
            flat = _project_l1(flat, r)
        case "l0":
            flat = keep_largest(flat, radius)
    return flat.view_as(delta)


def keep_largest(flat: Tensor, count: Tensor) -> Tensor:
    """The ``count`` ``(n,)`` largest entries by magnitude of each row ``(n, d)``, zero elsewhere."""
    order = flat.abs().argsort(dim=1, descending=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return flat * (rank < count[:, None])


def _project_l1(flat: Tensor, radius: Tensor) -> Tensor:
    """Duchi et al. (2008): soft-thresholding at the level found by sorting."""
    size = flat.abs()
    ordered = size.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - radius
    counts = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    active = (ordered * counts > excess).sum(1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(1, active - 1) / active).clamp_min(0)
    return flat.sign() * (size - threshold).clamp_min(0)


def lead_gradients(model: Model, x: Tensor, y: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far each of some classes is behind, and how to change that: one forward and c backward passes.

    Args:
        model: to be attacked.
        x: ``(n, ...)``.
        y: int64 ``(n,)``, the classes to leave.
        classes: int64 ``(n, c)``, the classes to compare them with.

    Returns:
        Logits ``(n, k)``, ``logit of y - logit of class`` ``(n, c)``, and the gradients ``(n, c, ...)`` of
        ``logit of class - logit of y``.
    """
    draws: int = getattr(model, "draws", 1)
    total = _one_lead(model, x, y, classes)
    for _ in range(draws - 1):
        total = tuple(a + b for a, b in zip(total, _one_lead(model, x, y, classes), strict=True))
    logits, gaps, gradients = (t / draws for t in total)
    return logits, gaps, gradients.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def step_to_nearest(point: Tensor, gaps: Tensor, gradients: Tensor, threat: Threat, overshoot: float = 0.02) -> Tensor:
    """Just past the nearest of several linearised boundaries, inside the bounds; shape of ``point``.

    Args:
        point: ``(n, ...)``.
        gaps, gradients: ``(n, c)`` and ``(n, c, ...)``, as :func:`lead_gradients` gives them.
        threat: what makes a step small, and the bounds.
        overshoot: how much of the gap to go beyond the boundary.
    """
    n, c = gaps.shape
    origin, normal = point.repeat_interleave(c, dim=0), gradients.flatten(0, 1)
    need = (1 + overshoot) * gaps.flatten()
    steps = step_to_hyperplane(origin, normal, need, threat.norm, threat.bounds)
    share = (steps * normal).flatten(1).sum(1) / need.where(need != 0, 1)
    size = threat.distance(steps, torch.zeros_like(steps)) * torch.where(share < 0.99, 1e6, 1.0)
    nearest = size.nan_to_num(nan=float("inf")).view(n, c).argmin(1)
    step = steps.view_as(gradients)[torch.arange(n, device=point.device), nearest]
    return (point + step).clamp(*threat.bounds)


def likeliest_others(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """int64 ``(n, c)``: the classes with the largest logits besides ``y``, largest first."""
    others = logits.scatter(1, y[:, None], -float("inf"))
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def linear_start(model: Model, x: Tensor, y: Tensor, threat: Threat, candidates: int = 9) -> Tensor:
    """Where the nearest decision boundary would be if the model were linear, just past it; shape of ``x``.

    Targeted: the boundary between the prediction and the target. Costs two forward passes and one backward pass
    for each candidate class.
    """
    logits = forward(model, x)
    if threat.targeted:
        _, gaps, gradients = lead_gradients(model, x, logits.argmax(1), y[:, None])
    else:
        _, gaps, gradients = lead_gradients(model, x, y, likeliest_others(logits, y, candidates))
    return step_to_nearest(x, gaps, gradients, threat)


def _one_lead(model: Model, x: Tensor, y: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = check_logits(model(leaf), len(x))
        if not logits.requires_grad:
            raise UnsupportedError(NO_GRADIENT)
        leads = logits.gather(1, classes) - logits.gather(1, y[:, None])
        last = classes.shape[1] - 1
        parts = [
            torch.autograd.grad(lead.sum(), leaf, retain_graph=i < last, materialize_grads=True)[0]
            for i, lead in enumerate(leads.unbind(1))
        ]
    return logits.detach(), -leads.detach(), torch.stack(parts, dim=1)
