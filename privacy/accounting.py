"""The privacy budget of DP-SGD: Poisson-subsampled Gaussian noise, composed over the steps.

Neighbouring data sets differ by one record added or removed. Two independent implementations of nearly tight
accounting are compared on every call: Opacus' PRV (arXiv 2106.02848), whose upper bound is what is reported, and
dp-accounting's PLD (arXiv 2207.04380). RDP (arXiv 1908.10530) is looser but always an upper bound, and stands in where
PRV cannot run. The central-limit account (GDP) understates epsilon and is not offered.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Literal

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.fft import next_fast_len
from scipy.optimize import brentq

from ..attacks.errors import UnsupportedError

Accountant = Literal["prv", "pld", "rdp"]

TOLERANCE = 0.01
"""Relative difference of PRV and PLD above which the larger is reported."""

_MAX_POINTS = 2**24
"""Of PRV's grid: one gigabyte."""

_MANY_POINTS = 2**19
_PRV_ERROR = 0.003
"""Of epsilon: how far above it PRV's bound may lie."""

_RESOLUTION = 6e-5
"""The least error of epsilon that is asked for."""

_ENOUGH = 0.995
_REFINEMENTS = 6
_FEW_ORDERS = (1.5, *range(2, 20), 24, 32, 48, 64, 128, 256)
_OPACUS_ORDERS = tuple(RDPAccountant.DEFAULT_ALPHAS)
_ORDERS = (*_OPACUS_ORDERS, *range(64, 256, 8), *range(256, 1025, 64))


@dataclass(frozen=True, slots=True)
class Budget:
    """What a training spends.

    Attributes:
        epsilon, delta: the guarantee to report, for adding or removing one record.
        accountant: whose epsilon it is.
        prv, pld, rdp: what each accountant says; None where it could not run.
        noise_multiplier: standard deviation of the noise divided by the clipping norm.
        sample_rate: probability with which each record enters a batch.
        steps: noisy gradient steps.
        warnings: why the reported epsilon is not PRV's, in plain sentences.
    """

    epsilon: float
    delta: float
    accountant: Accountant
    prv: float | None
    pld: float | None
    rdp: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    warnings: tuple[str, ...] = ()


def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> Budget:
    """The budget of ``steps`` steps of DP-SGD.

    Raises:
        UnsupportedError: for a sample rate outside (0, 1], delta outside (0, 1), negative noise or steps.
    """
    _check(noise_multiplier, sample_rate, steps, delta)
    if steps == 0 or noise_multiplier == 0:
        spent = 0.0 if steps == 0 else math.inf
        return Budget(spent, delta, "rdp", spent, spent, spent, noise_multiplier, sample_rate, steps)
    mechanism = (noise_multiplier, sample_rate, steps)
    rdp = rdp_epsilon(*mechanism, delta)
    prv = _attempt(prv_epsilon, *mechanism, delta)
    pld = _attempt(pld_epsilon, *mechanism, delta)
    value, accountant, notes = _decide(prv, pld, rdp)
    return Budget(value, delta, accountant, prv, pld, rdp, *mechanism, notes)


def noise_for(target_epsilon: float, sample_rate: float, steps: int, delta: float) -> float:
    """A noise multiplier with which the training spends at most ``target_epsilon``, and normally 99.5 % of it or more.

    Raises:
        UnsupportedError: when the target is not above 0, or no noise multiplier up to 10,000 reaches it.
    """
    _check(1.0, sample_rate, steps, delta)
    if not 0 < target_epsilon < math.inf:
        raise UnsupportedError(f"epsilon is {target_epsilon}: it must be a finite number above 0")
    mechanism = (sample_rate, steps, delta)
    noise = rdp_noise(target_epsilon, *mechanism)
    for _ in range(_REFINEMENTS):
        spent = _tight(noise, *mechanism)
        if _ENOUGH * target_epsilon <= spent <= target_epsilon:
            break
        noise *= _correction(noise, spent, (1 + _ENOUGH) / 2 * target_epsilon, *mechanism)
    while _tight(noise, *mechanism) > target_epsilon:
        noise *= 1.001
    return noise


def rdp_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float, *, rough: bool = False) -> float:
    """Rényi accountant (arXiv 1702.07476): an upper bound, typically a tenth to a quarter too high.

    Args:
        rough: take few orders, ten times as fast and a per cent or two higher.
    """
    orders = _FEW_ORDERS if rough else _ORDERS
    return _from_renyi(_renyi(noise_multiplier, sample_rate, orders), steps, delta, orders)


@lru_cache(maxsize=64)
def _renyi(noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]) -> NDArray[np.float64]:
    """Divergence of one step at each order: what takes time, and is asked for again at other deltas and steps."""
    return np.asarray(compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(orders)))


def _from_renyi(one_step: NDArray[np.float64], steps: int, delta: float, orders: tuple[float, ...]) -> float:
    with quiet():
        return float(get_privacy_spent(orders=list(orders), rdp=(steps * one_step).tolist(), delta=delta)[0])


def prv_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Upper bound of Opacus' PRV accountant, at most about 0.4 % above the truth, or 1e-4 where that is more.

    Raises:
        UnsupportedError: when that precision would need more memory than is reasonable.
    """
    mechanism = (noise_multiplier, sample_rate, steps)
    grid = _Grid.of(*mechanism, delta)
    value = scale = rdp_epsilon(*mechanism, delta)
    coarsest = min(0.1, max(1e-4, 0.01 * scale))
    if grid.points(coarsest) > _MAX_POINTS:
        raise UnsupportedError("PRV would need too fine a grid")
    if grid.points(_PRV_ERROR * scale) > _MANY_POINTS:  # where RDP is far above the truth, many of them are not needed
        scale = min(scale, _attempt(pld_epsilon, *mechanism, delta) or scale)
    for _ in range(3):
        wanted = float(np.clip(_PRV_ERROR * scale, _RESOLUTION, coarsest))
        error = max(wanted, grid.finest)
        accountant = PRVAccountant()
        accountant.history = [mechanism]
        with quiet():
            value = float(accountant.get_epsilon(delta, eps_error=grid.quick(error)))
        if not math.isfinite(value) or error > wanted or error <= max(_RESOLUTION, 1.5 * _PRV_ERROR * value):
            break
        scale = value
    return max(value, 0.0)  # below 0 where delta alone pays for all


def pld_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Upper bound of dp-accounting's privacy loss distribution."""
    rough = rdp_epsilon(noise_multiplier, sample_rate, steps, delta)
    grid = float(np.clip(2e-4 * rough, 1e-5, 1e-3))
    with quiet():
        one = from_gaussian_mechanism(noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=grid)
        return float(one.self_compose(steps).get_epsilon_for_delta(delta))


def default_delta(n: int) -> float:
    """``n ** -1.1``: below 1/n, at which leaking a whole random record would still count as private."""
    return float(n) ** -1.1


def _check(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> None:
    if not 0 < sample_rate <= 1:
        raise UnsupportedError(f"sample rate is {sample_rate}: it must be above 0 and at most 1")
    if not 0 < delta < 1:
        raise UnsupportedError(f"delta is {delta}: it must lie between 0 and 1")
    if noise_multiplier < 0 or steps < 0:
        raise UnsupportedError(f"noise multiplier is {noise_multiplier}, steps {steps}: neither can be negative")


def _decide(prv: float | None, pld: float | None, rdp: float) -> tuple[float, Accountant, tuple[str, ...]]:
    if prv is None:
        return rdp, "rdp", ("the PRV accountant could not run; epsilon is RDP's, a looser upper bound",)
    if pld is None:
        return prv, "prv", ("the PLD accountant could not run; epsilon was not cross-checked",)
    if abs(prv - pld) <= TOLERANCE * max(prv, pld):
        return prv, "prv", ()
    note = f"PRV says epsilon {prv:.4g}, PLD {pld:.4g}; they differ by more than 1 %, so the larger is reported"
    return (prv, "prv", (note,)) if prv > pld else (pld, "pld", (note,))


def _attempt(account: Callable[[float, float, int, float], float], *arguments: float | int) -> float | None:
    """None where an accountant fails or gives nonsense: another then speaks."""
    try:
        value = account(*arguments)  # pyright: ignore[reportArgumentType]
    except (ArithmeticError, MemoryError, RuntimeError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


@dataclass(frozen=True, slots=True)
class _Grid:
    """The grid that PRV will allocate, which for little noise can exhaust the memory.

    Attributes:
        reach: it goes from minus to plus this.
        ratio: of the error of epsilon to the distance of its points.
    """

    reach: float
    ratio: float

    @classmethod
    def of(cls, noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> _Grid:
        """As Opacus chooses it, with an error of delta / 1000 and by its orders of RDP, which come first here."""
        one_step = _renyi(noise_multiplier, sample_rate, _ORDERS)[: len(_OPACUS_ORDERS)]
        composed = _from_renyi(one_step, steps, delta / 4000, _OPACUS_ORDERS)
        single = _from_renyi(one_step, 1, delta / (8000 * steps), _OPACUS_ORDERS)
        return cls(max(composed, single, 0.0) + 3, math.sqrt(steps * math.log(12000 / delta) / 2))

    def points(self, error: float) -> float:
        return 2 * self.reach * self.ratio / error

    @property
    def finest(self) -> float:
        """The least error that memory allows."""
        return self.points(1.0) / _MAX_POINTS

    def quick(self, error: float) -> float:
        """An error a little below, with which the number of points has small prime factors only: the Fourier transforms
        of others take up to ten times as long."""
        wanted = 2 * math.ceil(self.points(error) / 2) + 2  # as Opacus counts
        size = next(size for size in count(wanted, 2) if next_fast_len(size, real=True) == size)
        return 2 * self.reach * self.ratio / (size - 3)


def _tight(noise: float, sample_rate: float, steps: int, delta: float) -> float:
    prv = _attempt(prv_epsilon, noise, sample_rate, steps, delta)
    return rdp_epsilon(noise, sample_rate, steps, delta) if prv is None else prv


def rdp_noise(target: float, sample_rate: float, steps: int, delta: float) -> float:
    """The noise multiplier at which RDP, which is cheap, gives the target: up to a fifth more than is needed.

    Raises:
        UnsupportedError: when no noise multiplier up to 10,000 reaches it.
    """

    def excess(log_noise: float) -> float:
        spent = rdp_epsilon(math.exp(log_noise), sample_rate, steps, delta, rough=True)
        return math.log(max(spent, 1e-12) / target)  # RDP rounds a tiny budget to 0

    low, high = math.log(0.05), math.log(1e4)
    if excess(high) > 0:
        raise UnsupportedError(f"epsilon {target:g} is out of reach: no reasonable amount of noise gets there")
    return math.exp(low if excess(low) < 0 else float(brentq(excess, low, high, xtol=5e-3)))  # pyright: ignore[reportArgumentType]


def _correction(noise: float, spent: float, aim: float, sample_rate: float, steps: int, delta: float) -> float:
    """The factor on the noise that moves epsilon from ``spent`` to ``aim``, with RDP's elasticity at that point."""
    here, there = (rdp_epsilon(noise * factor, sample_rate, steps, delta) for factor in (1.0, 0.98))
    elasticity = max(math.log(there / here) / -math.log(0.98), 0.5) if here > 0 else 1.0
    return min(5.0, max(0.2, (spent / aim) ** (1 / elasticity)))


@contextmanager
def quiet() -> Iterator[None]:
    """The accountants warn of the grid of orders and of logarithms of 0 at sample rate 1; neither loosens the bound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
