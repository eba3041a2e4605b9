"""Search over a defense's parameters, and the choice among what it found."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..attacks.errors import MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str
Sampler = Literal["grid", "random", "tpe", "nsga2"]
Rule = Literal["balanced", "robust_accuracy", "clean_accuracy"]
_MOST_GRID_POINTS = 1000


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers from ``low`` to ``high``, both included; whole ones where both ends are whole.

    Args:
        log: draw the logarithm evenly; ``low`` must then be above 0.

    Raises:
        UnsupportedError: when the ends are no span, or ``log`` meets a low end of 0 or less.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise UnsupportedError(f"low is {self.low} and high {self.high}: low must be below high, both finite")
        if self.log and self.low <= 0:
            raise UnsupportedError(f"log needs low above 0, not {self.low}")

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = Mapping[str, Sequence[Value] | Span]
"""For each parameter the values to try, or a span to draw from."""


@dataclass(frozen=True, slots=True)
class Score:
    """How many of ``n`` held-out samples a trial gets right, clean and attacked; ``error`` says why it broke."""

    n: int = 0
    clean: int = 0
    robust: int = 0
    error: str = ""

    @property
    def clean_accuracy(self) -> float:
        return self.clean / self.n

    @property
    def robust_accuracy(self) -> float:
        return self.robust / self.n

    def __add__(self, other: Score) -> Score:
        """Of two folds together."""
        joined = "; ".join(dict.fromkeys(text for text in (self.error, other.error) if text))
        return Score(self.n + other.n, self.clean + other.clean, self.robust + other.robust, joined)


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of parameters and what it scored."""

    number: int
    parameters: Mapping[str, Value]
    score: Score


def search(
    space: Space,
    score: Callable[[int, Mapping[str, Value]], Score],
    *,
    sampler: Sampler = "tpe",
    trials: int = 20,
    seed: int = 0,
) -> tuple[Trial, ...]:
    """Tries parameters from ``space``, aiming at high clean and high robust accuracy at once (Optuna).

    The same seed and the same scores give the same trials.

    Args:
        space: parameters and their values.
        score: called with the trial's number and its parameters. A score with an ``error`` counts as failed.
        sampler: ``grid`` (every combination, ``trials`` is ignored), ``random``, ``tpe`` (arXiv 2304.11127) or
            ``nsga2`` (Deb et al., 2002).
        trials: how many to make.

    Raises:
        MissingExtraError: when Optuna is not installed.
        UnsupportedError: see :func:`check_space`.
    """
    check_space(space, sampler)
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("a sweep", "sweep") from error
    count = math.prod(len(values) for values in _grid(space).values()) if sampler == "grid" else trials
    found: list[Trial] = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        parameters = {name: _suggest(trial, name, values) for name, values in space.items()}
        one = Trial(trial.number, parameters, score(trial.number, parameters))
        found.append(one)
        if one.score.error:
            raise optuna.TrialPruned(one.score.error)
        return one.score.clean_accuracy, one.score.robust_accuracy

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(directions=["maximize", "maximize"], sampler=_sampler(sampler, space, seed))
            study.optimize(objective, n_trials=count)
    finally:
        optuna.logging.set_verbosity(level)
    return tuple(found)


def check_space(space: Space, sampler: Sampler) -> None:
    """Refuses what cannot be searched.

    Raises:
        UnsupportedError: for an empty space, a span in a grid, a grid of more than 1,000 points, an unknown sampler.
    """
    if not space or any(isinstance(values, Sequence) and not values for values in space.values()):
        raise UnsupportedError("a search needs at least one parameter, and at least one value for each")
    if sampler not in get_args(Sampler):
        raise UnsupportedError(f"sampler is {sampler!r}: choose one of {', '.join(get_args(Sampler))}")
    if sampler == "grid":
        _grid(space)


def folds(y: Tensor, k: int, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """``k`` pairs of positions to train on and held out; each class is spread evenly, each sample held out once.

    Raises:
        UnsupportedError: for fewer than two folds, or fewer samples than folds.
    """
    if not 2 <= k <= len(y):
        raise UnsupportedError(f"{k} folds of {len(y)} samples: use 2 or more, at most one per sample")
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[y[shuffled].argsort(stable=True)]
    fold = torch.empty_like(by_class)
    fold[by_class] = torch.arange(len(y)) % k
    return tuple(((fold != i).nonzero().squeeze(1), (fold == i).nonzero().squeeze(1)) for i in range(k))


def pareto_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials that no other beats in one accuracy without losing in the other, by rising clean accuracy."""
    scored = [trial for trial in trials if not trial.score.error]
    front = [trial for trial in scored if not any(_dominates(other.score, trial.score) for other in scored)]
    return tuple(sorted(front, key=lambda trial: (trial.score.clean_accuracy, trial.number)))


def choose(trials: Sequence[Trial], rule: Rule = "balanced", clean_at_least: float = 0.0) -> Trial:
    """The best trial; of equals the one with the higher sum of accuracies, then the first.

    Args:
        rule: ``balanced`` for the highest mean of clean and robust accuracy, or one of the two.
        clean_at_least: trials with a lower clean accuracy are left out.

    Raises:
        UnsupportedError: when no trial is left.
    """
    fit = [trial for trial in trials if not trial.score.error and trial.score.clean_accuracy >= clean_at_least]
    if not fit:
        raise UnsupportedError(_nothing_left(trials, clean_at_least))

    def merit(trial: Trial) -> tuple[float, float, int]:
        clean, robust = trial.score.clean_accuracy, trial.score.robust_accuracy
        value = {"balanced": clean + robust, "robust_accuracy": robust, "clean_accuracy": clean}[rule]
        return value, clean + robust, -trial.number

    return max(fit, key=merit)


def _dominates(a: Score, b: Score) -> bool:
    pairs = ((a.clean_accuracy, b.clean_accuracy), (a.robust_accuracy, b.robust_accuracy))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def _nothing_left(trials: Sequence[Trial], clean_at_least: float) -> str:
    clean = [trial.score.clean_accuracy for trial in trials if not trial.score.error]
    if clean:
        return f"no trial has a clean accuracy of {clean_at_least:g} or more (best: {max(clean):.3f}): lower it"
    reasons = "; ".join(dict.fromkeys(trial.score.error for trial in trials)) or "there were none"
    return f"no trial finished: {reasons}"


def _grid(space: Space) -> dict[str, list[Value]]:
    spans = [name for name, values in space.items() if isinstance(values, Span)]
    if spans:
        raise UnsupportedError(f"a grid needs lists of values, but {', '.join(spans)} is a span: use tpe or random")
    grid = {name: list(values) for name, values in space.items() if not isinstance(values, Span)}
    points = math.prod(len(values) for values in grid.values())
    if points > _MOST_GRID_POINTS:
        raise UnsupportedError(f"a grid of {points} points is too large (at most {_MOST_GRID_POINTS}): use tpe")
    return grid


def _sampler(name: Sampler, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    match name:
        case "grid":
            return optuna.samplers.GridSampler(_grid(space), seed=seed)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=8)


def _suggest(trial: optuna.Trial, name: str, values: Sequence[Value] | Span) -> Value:
    if not isinstance(values, Span):
        return trial.suggest_categorical(name, list(values))  # pyright: ignore[reportReturnType]  one of the values
    if values.whole:
        return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)
