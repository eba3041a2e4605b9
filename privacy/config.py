"""How to train privately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..attacks.errors import UnsupportedError
from .clipping import ClippingName

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, slots=True)
class DPConfig:
    """How to train privately. Either ``epsilon`` or ``noise_multiplier`` is given.

    Args:
        epsilon: budget to spend; the noise follows from it.
        noise_multiplier: standard deviation of the noise divided by ``max_grad_norm``.
        delta: probability with which the guarantee may fail; ``n ** -1.1`` when left out.
        epochs: passes over the data, in expectation.
        batch_size: expected number of records per step; each record joins with probability ``batch_size / n``.
        max_grad_norm: l2 norm to which each record's gradient is clipped; the first bound of adaptive clipping.
        clipping: flat, per_layer, automatic or adaptive; see :class:`~.clipping.Clipping`.
        quantile: of the gradient norms, which the bound of adaptive clipping follows.
        lr, optimizer, momentum, schedule: of the update; sgd or adam, constant rate or a cosine to 0.
        views: augmented copies of each record in each step, whose gradients are averaged before clipping (augmentation
            multiplicity, arXiv 2204.13650): costs time, no privacy.
        ema: decay of the moving average of the weights that is kept, or None; costs no privacy.
        precision: bfloat16 runs forward and backward passes of the layers in half precision. The guarantee stays: the
            norms and the sum come from the same stored activations and gradients, in float32, so what is clipped is
            what is added, however roughly it was computed. Weights, noise and update are float32.
        seed: of sampling and noise. Whoever knows it can subtract the noise: use None, which draws both from the
            operating system, for weights that will be published.
        secure_noise: sums four Gaussians for each noise value, against attacks on floating-point noise
            (arXiv 2107.10138).
        physical_batch: most rows whose gradients are in memory at once; chosen by layer sizes when left out. It
            changes the result by rounding only.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    epochs: int = 10
    batch_size: int = 256
    max_grad_norm: float = 1.0
    clipping: ClippingName = "flat"
    quantile: float = 0.5
    lr: float = 0.5
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    schedule: Schedule = "constant"
    views: int = 1
    ema: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int | None = 0
    secure_noise: bool = False
    physical_batch: int | None = None

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise UnsupportedError("DP-SGD needs either epsilon or noise_multiplier (one of the two)")
        if min(self.epochs, self.batch_size, self.views, self.physical_batch or 1) < 1:
            raise UnsupportedError("epochs, batch_size, views and physical_batch must be at least 1")
        if not self.max_grad_norm > 0 or not self.lr > 0:
            raise UnsupportedError("max_grad_norm and lr must be above 0")
        if not 0 < self.quantile < 1:
            raise UnsupportedError(f"quantile is {self.quantile}: it must lie between 0 and 1")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UnsupportedError(f"ema is {self.ema}: the decay must be at least 0 and below 1")
        if self.secure_noise and self.clipping == "adaptive":
            raise UnsupportedError("secure_noise does not cover the count of adaptive clipping: use clipping: flat")
