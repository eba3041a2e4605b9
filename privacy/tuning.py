"""What choosing hyper-parameters on the same records costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from opacus.accountants.analysis.rdp import compute_rdp

from ..attacks.errors import UnsupportedError
from .accounting import Budget, epsilon, quiet

_ORDERS = [1.5, 1.75, *(x / 2 for x in range(4, 21)), *range(11, 20), 24, 32, 48, 63]


@dataclass(frozen=True, slots=True)
class TuningCost:
    """The budget of choosing the best of several trainings, each like the one accounted for.

    Attributes:
        trials: trainings made on these records, the one that is kept included.
        epsilon: for a number of trials fixed in advance, at the same delta: all of them composed, as if every one had
            been published. An upper bound.
        random_trials: for a number drawn from a Poisson distribution with that mean, of which only the best is
            published (arXiv 2110.03620, theorem 6); None where the bound is void. The number must really be drawn.
    """

    trials: int
    epsilon: float
    random_trials: float | None


def tuning_cost(budget: Budget, trials: int) -> TuningCost:
    """What ``trials`` trainings with the noise, rate and steps of ``budget`` spend together.

    Raises:
        UnsupportedError: for fewer than one trial.
    """
    if trials < 1:
        raise UnsupportedError(f"trials is {trials}: the training that is kept is one")
    if trials == 1 or not 0 < budget.epsilon < math.inf:
        return TuningCost(trials, budget.epsilon, budget.epsilon)
    together = epsilon(budget.noise_multiplier, budget.sample_rate, trials * budget.steps, budget.delta)
    return TuningCost(trials, together.epsilon, _poisson_epsilon(budget, trials))


def _poisson_epsilon(budget: Budget, mean: int) -> float | None:
    """``min over orders`` of the Rényi bound ``rdp + mean * delta' + log(mean) / (order - 1)``, turned into epsilon.

    ``delta'`` is the training's own at ``epsilon' = log(1 + 1 / (order - 1))``.
    """
    with quiet():
        one = from_gaussian_mechanism(
            budget.noise_multiplier, sampling_prob=budget.sample_rate, value_discretization_interval=1e-3
        ).self_compose(budget.steps)
        rdp = partial(compute_rdp, q=budget.sample_rate, noise_multiplier=budget.noise_multiplier, steps=budget.steps)
        curve = np.asarray(rdp(orders=_ORDERS)).tolist()
    best = math.inf
    for order, divergence in zip(_ORDERS, curve, strict=True):
        loose = float(one.get_delta_for_epsilon(math.log1p(1 / (order - 1))))
        bound = divergence + mean * loose + math.log(mean) / (order - 1)
        # From Rényi to (epsilon, delta): arXiv 2004.00010, proposition 12.
        value = bound + math.log1p(-1 / order) - (math.log(budget.delta) + math.log(order)) / (order - 1)
        best = min(best, value)
    return max(best, budget.epsilon) if math.isfinite(best) else None
