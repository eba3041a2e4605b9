"""From right guesses to a lower bound on epsilon that holds with stated confidence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, expit, gammaln, log_expit

from ...attacks.errors import UnsupportedError
from ...attacks.statistics import rate_intervals

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LARGEST = 64.0
"""Epsilons above this are all the same: no number of canaries tells them apart."""
_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True, slots=True)
class LowerBound:
    """An epsilon that the training cannot be below.

    Attributes:
        epsilon: 0 when nothing could be shown.
        delta: at which it holds.
        confidence: probability with which the bound is right.
        guesses: how many were made; in many runs, how many runs were judged.
        correct: how many were right.
        highest: the largest epsilon that this many canaries or runs, all told apart, could have shown.
    """

    epsilon: float
    delta: float
    confidence: float
    guesses: int
    correct: int
    highest: float


def one_run_bound(scores: Floats, included: Mask, delta: float, confidence: float = 0.95) -> LowerBound:
    """Lower bound from one training (Steinke et al., arXiv 2305.08846).

    Each canary was included on a fair coin of its own. The highest scores are guessed to be included, as many of the
    lowest to be left out, the rest abstained from. If the training is (epsilon, delta)-private, for records added or
    removed, the number of right guesses is bounded as in the paper's theorem 5.2. How many to guess is not chosen by
    looking: several numbers are tried, and each has its share of the error.

    Args:
        scores: ``(m,)``, the higher the more like included; ties count as they come, so let them not depend on
            ``included``.
        included: bool ``(m,)``.

    Raises:
        UnsupportedError: for fewer than 2 canaries, scores that are not numbers, or delta or confidence outside 0..1.
    """
    _check(scores, included, delta, confidence)
    m = len(scores)
    order = np.argsort(scores, kind="stable")
    counts = sorted({max(1, int(m * share)) for share in _SHARES})
    error = (1 - confidence) / len(counts)
    best = LowerBound(-1.0, delta, confidence, 0, 0, 0.0)
    highest = max(_perfect(m, 2 * side, delta, error) for side in counts)
    for side in counts:
        correct = int((~included[order[:side]]).sum() + included[order[-side:]].sum())
        guesses = 2 * side
        found = _smallest_epsilon(m, guesses, correct, delta, error)
        if found > best.epsilon:
            best = LowerBound(found, delta, confidence, guesses, correct, highest)
    return best


def one_run_p_value(m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Probability bound of so many right guesses under (epsilon, delta) (arXiv 2305.08846, theorem 5.2).

    Without delta the right guesses are dominated by independent coins that are right with probability
    ``1 / (1 + exp(-epsilon))``; delta adds, for the worst i, ``2 m delta P[correct - i <= B < correct] / i``.
    """
    return _p_value(m, guesses, correct, epsilon, delta, _log_choices(guesses, correct))


def _log_choices(guesses: int, correct: int) -> Floats:
    """Logarithm of the binomial coefficients ``(guesses over k)`` for k from ``correct - 1`` down to 0."""
    k = np.arange(correct - 1, -1, -1)
    return gammaln(guesses + 1) - gammaln(k + 1) - gammaln(guesses - k + 1)


def _p_value(m: int, guesses: int, correct: int, epsilon: float, delta: float, log_choices: Floats) -> float:
    right = float(expit(epsilon))
    if correct == 0:
        return 1.0
    tail = float(betainc(correct, guesses - correct + 1, right))
    if delta == 0:
        return tail
    k = np.arange(correct - 1, -1, -1)
    mass = np.exp(log_choices + k * log_expit(epsilon) + (guesses - k) * log_expit(-epsilon))
    worst = float((np.cumsum(mass) / np.arange(1, correct + 1)).max())
    return min(tail + 2 * m * delta * worst, 1.0)


def many_run_bound(
    included: Floats, left_out: Floats, delta: float, confidence: float = 0.95, tuned_on: int | None = None
) -> LowerBound:
    """Lower bound from the scores of a canary over many trainings with and without it (arXiv 2006.07709, 2101.04535).

    The first runs of each kind choose the threshold and which of the two error rates is used; the others count its
    errors, which Clopper-Pearson intervals bound together.

    Args:
        included: scores ``(a,)`` of trainings with the canary.
        left_out: scores ``(b,)`` of trainings without.
        tuned_on: how many runs of each kind choose the threshold; half when left out.

    Raises:
        UnsupportedError: with fewer than 4 runs of a kind.
    """
    for scores in (included, left_out):
        _check(scores, np.ones(len(scores), dtype=np.bool_), delta, confidence, least=4)
    first = min(len(included), len(left_out)) // 2 if tuned_on is None else tuned_on
    if not 1 <= first < min(len(included), len(left_out)):
        raise UnsupportedError(f"tuned_on is {first}: some runs must be left to count errors on")
    threshold, kind = _threshold(included[:first], left_out[:first], delta, confidence)
    with_it, without = included[first:], left_out[first:]
    missed, false = int((with_it < threshold).sum()), int((without >= threshold).sum())
    found = _from_errors(missed, len(with_it), false, len(without), delta, confidence)[kind]
    highest = float(max(_from_errors(0, len(with_it), 0, len(without), delta, confidence)))
    judged = len(with_it) + len(without)
    return LowerBound(max(float(found), 0.0), delta, confidence, judged, judged - missed - false, highest)


def _threshold(included: Floats, left_out: Floats, delta: float, confidence: float) -> tuple[float, int]:
    """The threshold that gives the best bound, and by which rate: 0 missed over false, 1 the reverse."""
    thresholds = np.unique(np.concatenate([included, left_out]))
    missed = np.searchsorted(np.sort(included), thresholds, side="left")
    false = len(left_out) - np.searchsorted(np.sort(left_out), thresholds, side="left")
    bounds = np.stack(_from_errors(missed, len(included), false, len(left_out), delta, confidence))
    kind, place = np.unravel_index(int(bounds.argmax()), bounds.shape)
    return float(thresholds[place]), int(kind)


def _from_errors(
    missed: ArrayLike, with_it: int, false: ArrayLike, without: int, delta: float, confidence: float
) -> tuple[Floats, Floats]:
    """``log((1 - delta - a) / b)`` for both orders of the error rates, each at its upper end."""
    # One-sided bounds that hold together: each has half of the error.
    upper = [rate_intervals(count, n, confidence, "exact")[1] for count, n in ((missed, with_it), (false, without))]
    return _log_ratio(upper[0], upper[1], delta), _log_ratio(upper[1], upper[0], delta)


def _log_ratio(a: Floats, b: Floats, delta: float) -> Floats:
    return np.log(np.maximum(1 - delta - a, 1e-300) / b)


@lru_cache(maxsize=256)
def _perfect(m: int, guesses: int, delta: float, error: float) -> float:
    return _smallest_epsilon(m, guesses, guesses, delta, error)


def _smallest_epsilon(m: int, guesses: int, correct: int, delta: float, error: float) -> float:
    """The largest epsilon that so many right guesses rule out, by bisection: the p-value grows with epsilon."""
    low, high = 0.0, _LARGEST
    choices = _log_choices(guesses, correct)
    if _p_value(m, guesses, correct, low, delta, choices) > error:
        return 0.0
    for _ in range(32):
        middle = (low + high) / 2
        if _p_value(m, guesses, correct, middle, delta, choices) <= error:
            low = middle
        else:
            high = middle
    return low


def _check(scores: Floats, included: Mask, delta: float, confidence: float, least: int = 2) -> None:
    if len(scores) < least or scores.shape != included.shape:
        raise UnsupportedError(f"{len(scores)} scores and {len(included)} marks: need at least {least}, one for each")
    if np.isnan(scores).any():
        raise UnsupportedError("some scores are NaN")
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise UnsupportedError(f"delta is {delta}, confidence {confidence}: both must lie between 0 and 1")
