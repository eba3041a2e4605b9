"""Randomised smoothing: the class a model gives most often under Gaussian noise, and how far that provably holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import betaincinv, ndtri
from scipy.stats import binom
from torch import Tensor, nn

from ..attacks.attack import Model
from ..attacks.errors import UnsupportedError
from ..attacks.models import attacking, check_logits
from ..attacks.streams import Streams
from .objectives import BatchLoss, Moment, Objective

ABSTAIN = -1
"""The prediction where the votes do not decide."""

_BLOCK = 256
"""Draws made at a time: fixed, so that the noise of a sample does not depend on the batch size."""

_ROWS = 512
"""Noisy copies that :class:`Smoothed` passes through its body at a time."""


class Smoothed(nn.Module):
    """https://arxiv.org/abs/1902.02918. A classifier averaged over Gaussian noise on its input.

    Logits are the log of the mean of the body's probabilities over ``copies`` noisy copies of the input. The noise is
    one fixed set, the same for every input and every call, drawn from ``seed``: the module is then an ordinary smooth
    function whose gradient is the expectation over its own noise, so any gradient attack on it is the adaptive one
    (SmoothAdv, arXiv 1906.04584), results repeat, and an attacker even knows the noise, which one facing fresh noise
    does not. Certificates never rest on this set: :func:`certify` draws fresh noise.

    Args:
        body: maps ``(n, ...)`` to logits ``(n, k)``.
        sigma: standard deviation of the noise, in input units. Noisy inputs are not clipped.
        copies: noisy copies per input, >= 1. (Not called draws: attacks would average over that many more passes.)
        seed: of the noise.

    Raises:
        UnsupportedError: for sigma <= 0 or copies < 1.
    """

    def __init__(self, body: nn.Module, sigma: float, copies: int = 32, seed: int = 0) -> None:
        super().__init__()
        if copies < 1:
            raise UnsupportedError(f"copies is {copies}: it must be at least 1")
        self.body = body
        self.sigma = _positive(sigma)
        self.copies = copies
        self.seed = seed
        self._kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``(n, k)``."""
        noise, n = self._noise(x), len(x)
        parts = []
        for some in noise.split(max(1, _ROWS // max(n, 1))):
            noisy = (x[None] + some[:, None]).flatten(0, 1)
            parts.append(self.body(noisy).log_softmax(1).view(len(some), n, -1))
        return torch.cat(parts).logsumexp(0) - math.log(self.copies)

    def _noise(self, x: Tensor) -> Tensor:
        """``(copies, ...)`` in the shape, type and place of one input; made on the CPU once."""
        kept = self._kept
        if kept is None or kept.shape[1:] != x.shape[1:] or kept.dtype != x.dtype or kept.device != x.device:
            generator = torch.Generator().manual_seed(self.seed)
            kept = self._kept = (self.sigma * torch.randn(self.copies, *x.shape[1:], generator=generator)).to(x)
        return kept


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """Adds Gaussian noise to each training input and applies ``objective``: what makes a base worth smoothing.

    Args:
        objective: the loss on the noisy inputs.
        sigma: standard deviation of the noise, in input units; the one it will be smoothed with.
    """

    objective: Objective
    sigma: float

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        noise = torch.randn(x.shape, generator=moment.generator).to(x)
        return self.objective(module, x + self.sigma * noise, y, moment)


@dataclass(frozen=True, slots=True)
class Certificates:
    """What :func:`certify` found; tensors ``(n,)`` on the CPU.

    Attributes:
        prediction: int64, the class that the smoothed classifier returns, or ``ABSTAIN``.
        radius: float64, l2 radius within which that class provably stays the most likely; 0 where it abstains.
        candidate: int64, the class that the first draws suggested.
        votes: int64, how many of the ``draws`` further draws gave the candidate.
        draws: further draws per sample.
    """

    prediction: Tensor
    radius: Tensor
    candidate: Tensor
    votes: Tensor
    draws: int

    def holds(self, y: Tensor, radius: float) -> Tensor:
        """Bool ``(n,)``: the smoothed classifier gives ``y`` everywhere within ``radius``."""
        return (self.prediction == y) & (self.radius > radius) if radius > 0 else self.prediction == y


@torch.no_grad()
def vote_counts(
    model: Model, x: Tensor, sigma: float, draws: int, *, streams: Streams, batch_size: int | None = None
) -> Tensor:
    """How often each class wins under noise: int64 ``(n, k)``, rows adding up to ``draws``; on the CPU.

    The noise of a sample follows from its stream's key alone (and is made on the CPU), not from batch size, order,
    or device. A module is put into eval mode and given back as found.

    Args:
        x: floats ``(n, ...)`` on the model's device.
        streams: one per sample.
        batch_size: noisy copies passed through the model at a time; 256 when None.
    """
    sigma = _positive(sigma)
    counts: Tensor | None = None
    with attacking(model):
        for row, key in enumerate(streams.keys.tolist()):
            generator = torch.Generator().manual_seed(key)
            for start in range(0, draws, _BLOCK):
                block = min(_BLOCK, draws - start)
                noise = torch.randn(block, *x.shape[1:], generator=generator, dtype=torch.float32).to(x)
                for part in noise.split(batch_size or _BLOCK):
                    logits = check_logits(model(x[row] + sigma * part), len(part))
                    votes = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu()
                    if counts is None:
                        counts = torch.zeros(len(x), logits.shape[1], dtype=torch.int64)
                    counts[row] += votes
    if counts is None:
        raise UnsupportedError(f"there is nothing to count: {len(x)} inputs, {draws} draws; both must be at least 1")
    return counts


def smooth_predict(
    model: Model,
    x: Tensor,
    sigma: float,
    *,
    draws: int = 1000,
    alpha: float = 0.001,
    streams: Streams | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The smoothed classifier's class, int64 ``(n,)`` on the CPU, or ``ABSTAIN`` (PREDICT of arXiv 1902.02918).

    The class returned is the one most likely under noise with probability at least ``1 - alpha`` per sample.

    Args:
        model: the classifier that is smoothed: ``(n, ...) -> (n, k)``.
        sigma: standard deviation of the noise, in input units.
        streams: of the samples; numbered by position under seed 0 when None.
    """
    streams = Streams.from_seed(0, torch.arange(len(x))) if streams is None else streams
    return decided(vote_counts(model, x, sigma, draws, streams=streams, batch_size=batch_size), alpha)


def decided(counts: Tensor, alpha: float) -> Tensor:
    """The winner ``(n,)`` of votes ``(n, k)``, or ``ABSTAIN`` where a fair coin would explain its lead at ``alpha``."""
    top = counts.topk(2, dim=1)
    first, both = top.values[:, 0].numpy(), top.values.sum(1).numpy()
    p = torch.from_numpy((2 * binom.sf(first - 1, both, 0.5)).clip(max=1.0))
    return torch.where(p <= alpha, top.indices[:, 0], ABSTAIN)


def certify(
    model: Model,
    x: Tensor,
    sigma: float,
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    streams: Streams | None = None,
    batch_size: int | None = None,
) -> Certificates:
    """Certified l2 radii of the smoothed classifier (CERTIFY of arXiv 1902.02918).

    ``n0`` draws choose a class, ``n`` fresh ones bound its probability from below at confidence ``1 - alpha``
    (Clopper-Pearson); where the bound p exceeds one half, the class holds within ``sigma * Phi^-1(p)``. A radius is
    wrong with probability at most ``alpha``, for each sample on its own.

    Args:
        model: the classifier that is smoothed: ``(n, ...) -> (n, k)``; not a :class:`Smoothed`.
        sigma: standard deviation of the noise, in input units.
        streams: of the samples; numbered by position under seed 0 when None.

    Raises:
        UnsupportedError: for sigma <= 0, n0 or n below 1, or alpha outside 0..1.
    """
    if min(n0, n) < 1 or not 0 < alpha < 1:
        raise UnsupportedError(f"n0 is {n0}, n {n}, alpha {alpha}: n0 and n must be at least 1, alpha within 0..1")
    streams = Streams.from_seed(0, torch.arange(len(x))) if streams is None else streams
    guesses = vote_counts(model, x, sigma, n0, streams=streams.fork(1), batch_size=batch_size)
    counts = vote_counts(model, x, sigma, n, streams=streams.fork(2), batch_size=batch_size)
    candidate = guesses.argmax(1)
    return certificates(candidate, counts.gather(1, candidate[:, None])[:, 0], n, sigma, alpha)


def certificates(candidate: Tensor, votes: Tensor, n: int, sigma: float, alpha: float) -> Certificates:
    """What ``votes`` ``(m,)`` of ``n`` draws for the candidates ``(m,)`` certify."""
    p = lower_bound(votes, n, alpha)
    radius = torch.where(p > 0.5, certified_radius(p, sigma), 0.0)
    return Certificates(torch.where(p > 0.5, candidate, ABSTAIN), radius, candidate, votes, n)


def lower_bound(successes: Tensor, n: int, alpha: float) -> Tensor:
    """Lower end ``(m,)`` of the one-sided Clopper-Pearson interval at confidence ``1 - alpha``, float64."""
    s = successes.double().numpy()
    bound = betaincinv(s.clip(min=0.5), n - s + 1, alpha)
    return torch.from_numpy(bound).where(successes > 0, 0.0)


def certified_radius(p: Tensor, sigma: float) -> Tensor:
    """``sigma * Phi^-1(p)``; infinite at p = 1."""
    return sigma * torch.from_numpy(ndtri(p.double().numpy()))


def _positive(sigma: float) -> float:
    if not 0 < sigma < math.inf:
        raise UnsupportedError(f"sigma is {sigma}: the noise needs a finite standard deviation above 0")
    return sigma
