"""Model inversion by gradient ascent with an image prior (Fredrikson et al., 2015; priors: arXiv 1412.0035)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, pad

from ...attacks.errors import UnsupportedError
from ...attacks.models import attacking


@dataclass(frozen=True, slots=True)
class GradientInversion:
    """Finds inputs that the model is sure are of a class, and that look like pictures.

    What is minimised is the cross-entropy of the class, averaged over small shifts of the input, plus ``tv`` times its
    total variation, plus ``prior`` times its squared distance to a mean picture.

    Args:
        steps: of Adam.
        lr: its rate, in units of the input's range.
        tv: weight of total variation (mean absolute difference of neighbouring pixels).
        prior: weight of the mean squared distance to the prior picture; 0 leaves it out of the loss, and it still is
            where the search starts.
        shift: the input is moved at random by up to so many pixels in each step, against patterns that only one
            place of the network sees.
        coarse: the search runs on a grid so many times coarser at first, and on all pixels for the second half.
    """

    steps: int = 200
    lr: float = 0.05
    tv: float = 0.3
    prior: float = 10.0
    shift: int = 0
    coarse: int = 2

    def __post_init__(self) -> None:
        if self.steps < 2 or self.coarse < 1 or not self.lr > 0 or min(self.tv, self.prior, self.shift) < 0:
            raise UnsupportedError("steps must be >= 2, coarse >= 1, lr > 0, tv, prior and shift >= 0")

    def __call__(
        self,
        model: nn.Module,
        classes: Tensor,
        shape: tuple[int, ...],
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        mean: Tensor | None = None,
        seed: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """One input ``(b, *shape)`` for each class of ``classes`` ``(b,)``; repeat a class for several attempts.

        Args:
            shape: of an input, ``(c, h, w)`` or ``(d,)``; what is not a picture has no total variation.
            mean: prior picture, in the shape of an input; the middle of the bounds when left out.
            progress: told 1 after each step.

        Raises:
            UnsupportedError: when the model gives no gradients.
        """
        low, high = bounds
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        start = torch.full(shape, (low + high) / 2) if mean is None else mean
        start = start.to(device).expand(len(classes), *shape)
        generator = torch.Generator().manual_seed(seed)
        noise = 0.05 * (high - low) * torch.randn(start.shape, generator=generator).to(device)
        point = (start + noise).clamp(low, high)
        y = classes.to(device)
        halves = (self.steps // 2, self.steps - self.steps // 2) if self._pictures(shape) else (0, self.steps)
        with attacking(model), torch.enable_grad():
            for steps, factor in zip(halves, (self.coarse, 1), strict=True):
                if steps:
                    point = self._descend(model, y, point, start, steps, factor, bounds, generator, progress)
        return point.detach().cpu()

    def _descend(
        self,
        model: nn.Module,
        y: Tensor,
        point: Tensor,
        start: Tensor,
        steps: int,
        factor: int,
        bounds: tuple[float, float],
        generator: torch.Generator,
        progress: Callable[[float], None] | None,
    ) -> Tensor:
        low, high = bounds
        size = point.shape[2:]
        free = (avg_pool2d(point, factor, ceil_mode=True) if factor > 1 else point).detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([free], self.lr * (high - low))

        def full() -> Tensor:
            return interpolate(free, size, mode="bilinear", align_corners=False) if factor > 1 else free

        for _ in range(steps):
            x = full()
            logits = model(self._moved(x, generator))
            if not logits.requires_grad:
                raise UnsupportedError("the model gives no gradient with respect to its input: it cannot be inverted")
            loss = cross_entropy(logits, y, reduction="sum")
            scaled = (x - low) / (high - low)
            loss = loss + self.tv * total_variation(scaled).sum()
            anchor = (start - low) / (high - low)
            loss = loss + self.prior * ((scaled - anchor) ** 2).flatten(1).mean(1).sum()
            (free.grad,) = torch.autograd.grad(loss, free)
            optimizer.step()
            with torch.no_grad():
                free.clamp_(low, high)
            if progress is not None:
                progress(1)
        return full().detach()

    def _moved(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if not self.shift or not self._pictures(tuple(x.shape[1:])):
            return x
        down, right = (int(torch.randint(-self.shift, self.shift + 1, (1,), generator=generator)) for _ in range(2))
        padded = pad(x, (self.shift,) * 4, mode="replicate")
        h, w = x.shape[2:]
        return padded[:, :, self.shift + down : self.shift + down + h, self.shift + right : self.shift + right + w]

    @staticmethod
    def _pictures(shape: tuple[int, ...]) -> bool:
        return len(shape) == 3 and min(shape[1:]) > 2


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference ``(n,)`` of neighbouring pixels of ``(n, c, h, w)``; 0 for anything else."""
    if x.dim() != 4:
        return x.new_zeros(len(x))
    down, right = (x[:, :, 1:] - x[:, :, :-1]).abs(), (x[:, :, :, 1:] - x[:, :, :, :-1]).abs()
    return down.flatten(1).mean(1) + right.flatten(1).mean(1)


def likeness(x: Tensor, means: Tensor, centre: Tensor) -> Tensor:
    """Correlation ``(n, k)``, -1..1, of inputs ``(n, ...)`` with class means ``(k, ...)``, both around ``centre``.

    Taking away what all classes share leaves what is special to each.
    """
    a, b = (x - centre).flatten(1).double(), (means - centre).flatten(1).double()
    a, b = (t / t.norm(dim=1, keepdim=True).clamp_min(1e-12) for t in (a, b))
    return a @ b.T
