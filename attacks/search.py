"""The parts every native attack is made of: gradients, who is fooled, and the set of samples still to fool."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .attack import Model
from .batching import bucket
from .errors import UnsupportedError
from .models import CountingModel, check_logits

NO_GRADIENT = (
    "the model gives no gradient with respect to its input (it runs under no_grad, detaches, or contains a "
    "non-differentiable step): use a black-box attack, or BPDA around the non-differentiable step"
)


def input_gradient(model: Model, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``(n, k)``, loss ``(n,)`` and the gradient of each sample's loss, in the shape of ``x``; detached.

    A model with an attribute ``draws`` (see :class:`~auditorch.attacks.evasion.eot.EOT`) is randomised: gradient,
    loss and logits are averaged over that many passes. Non-finite gradient entries carry no direction and become 0.

    Raises:
        UnsupportedError: when the output does not depend differentiably on ``x``.
    """
    draws: int = getattr(model, "draws", 1)
    total = _one_gradient(model, x, loss)
    for _ in range(draws - 1):
        total = tuple(a + b for a, b in zip(total, _one_gradient(model, x, loss), strict=True))
    logits, losses, gradient = total if draws == 1 else (t / draws for t in total)
    return logits, losses, gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _one_gradient(model: Model, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = check_logits(model(leaf), len(x))
        if not logits.requires_grad:
            raise UnsupportedError(NO_GRADIENT)
        losses = loss(logits)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise UnsupportedError(NO_GRADIENT)
    return logits.detach(), losses.detach(), gradient


@torch.no_grad()
def forward(model: Model, x: Tensor) -> Tensor:
    """Logits ``(n, k)`` without a graph; averaged over ``model.draws`` passes where the model has that attribute."""
    draws: int = getattr(model, "draws", 1)
    logits = check_logits(model(x), len(x))
    for _ in range(draws - 1):
        logits = logits + model(x)
    return logits / draws if draws > 1 else logits


def fooled(logits: Tensor, y: Tensor, *, targeted: bool) -> Tensor:
    """Bool ``(n,)``: whether the prediction is not ``y`` (targeted: is ``y``). NaN logits never count."""
    hit = logits.argmax(1) == y
    return (hit if targeted else ~hit) & ~logits.isnan().any(1)


def attackable(model: Model, x: Tensor, y: Tensor, *, targeted: bool) -> Tensor:
    """Bool ``(n,)``: samples that the clean model does not already get wrong (targeted: not yet in class ``y``)."""
    if isinstance(model, CountingModel) and model.screened:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    return ~fooled(forward(model, x), y, targeted=targeted)


class ActiveSet:
    """The samples of one batch that are still to be fooled; those that are drop out and cost nothing more.

    Attributes:
        x_adv: ``(n, ...)``, the result so far: a fooling point, else the best attempt, else the clean input.
        success: bool ``(n,)``.
        index: int64 ``(m,)``, rows of the batch now under attack, in the order of the attack's own tensors.
        spent: int64 ``(n,)``, points examined of each sample until it was fooled, or so far.
    """

    def __init__(self, x: Tensor, attackable: Tensor) -> None:
        self.x_adv = x.detach().clone()
        self.success = ~attackable
        self.best = torch.full((len(x),), -float("inf"), device=x.device)
        self.spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.index = attackable.nonzero().squeeze(1)
        self._steps = 0

    def __len__(self) -> int:
        return len(self.index)

    def restart(self) -> bool:
        """Puts every sample not yet fooled under attack again; false when there is none."""
        self.index = (~self.success).nonzero().squeeze(1)
        return len(self.index) > 0

    def record(self, points: Tensor, hit: Tensor) -> None:
        """Keeps ``points`` ``(m, ...)`` where ``hit`` ``(m,)`` and nothing was found before."""
        standing = ~self.success[self.index]
        self.spent.index_add_(0, self.index, standing.to(torch.int64))
        new = hit & standing
        if deferred(points):  # the same without asking the device how many there are
            kept = self.x_adv.index_select(0, self.index)
            mask = new.view(-1, *[1] * (points.dim() - 1))
            self.x_adv.index_copy_(0, self.index, torch.where(mask, points, kept))
            self.success.index_copy_(0, self.index, self.success[self.index] | new)
        elif new.any():
            rows = self.index[new]
            self.x_adv[rows] = points[new]
            self.success[rows] = True

    def attempt(self, points: Tensor, score: Tensor) -> None:
        """Keeps ``points`` as best attempts where nothing was found and ``score`` ``(m,)`` beats earlier attempts."""
        score = score.to(self.best.dtype)
        better = (score > self.best[self.index]) & ~self.success[self.index]
        rows = self.index[better]
        self.x_adv[rows] = points[better]
        self.best[rows] = score[better]

    def compact(self) -> Tensor | None:
        """Drops the fooled samples. Int64 positions to keep of the attack's own tensors; None when all stay.

        On a GPU asking how many are left makes the host wait, and each new batch size costs kernel selection or a
        recompilation. There it looks only every fourth call, and keeps a few fooled samples so that sizes come
        from a short list.
        """
        self._steps += 1
        on_gpu = deferred(self.index)
        if on_gpu and self._steps % 4:
            return None
        done = self.success[self.index]
        left = len(done) - int(done.sum())
        size = min(bucket(left), len(done)) if on_gpu else left
        if size == len(done):
            return None
        keep = done.to(torch.uint8).argsort(stable=True)[:size]
        self.index = self.index[keep]
        return keep


def deferred(tensor: Tensor) -> bool:
    """Whether operations on the tensor run behind the host's back, so that asking for a value makes it wait."""
    return tensor.is_cuda
