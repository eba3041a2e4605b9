"""Attribute inference: does the model help to guess a hidden column of a record? (Fredrikson et al., 2014)

Only what goes beyond guessing without the model is a leak (Jayaraman and Evans, arXiv 2209.01292).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.ensemble import HistGradientBoostingClassifier

from ..attacks.errors import UnsupportedError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Ask = Callable[[Floats], Floats]
"""Logits ``(b, k)`` for raw rows ``(b, d)``."""

_MOST_VALUES = 20


@dataclass(frozen=True, slots=True)
class Guesses:
    """What was guessed of the hidden column, with the model and without it.

    Attributes:
        truth, attack, baseline: place of the value in ``values`` ``(n,)``.
        values: the candidates ``(v,)``.
    """

    truth: Ints
    attack: Ints
    baseline: Ints
    values: Floats

    @property
    def gain(self) -> Floats:
        """By record ``(n,)``: 1 where only the attack is right, -1 where only the baseline is, else 0."""
        return (self.attack == self.truth).astype(np.float64) - (self.baseline == self.truth)


def candidates(column: Floats) -> Floats:
    """The values that the hidden column takes.

    Raises:
        UnsupportedError: when there is one only, or more than 20.
    """
    values = np.unique(column)
    if not 2 <= len(values) <= _MOST_VALUES:
        raise UnsupportedError(
            f"the hidden column has {len(values)} values: attribute inference guesses among 2 to {_MOST_VALUES}; "
            "bin it first"
        )
    return values


def infer_attribute(
    ask: Ask,
    known: tuple[Floats, Ints],
    victims: tuple[Floats, Ints],
    column: int,
    seed: int = 0,
) -> Guesses:
    """Guesses a column of the victims' rows from their other columns and their label.

    The baseline learns from rows that the attacker knows in full, without the model. The attack learns from the same
    rows, by the same kind of classifier, and sees besides what the model says of the label for each value that the
    column might have: only the model's knowledge is added, never the hidden value itself.

    Args:
        ask: the model.
        known: rows ``(m, d)`` and labels ``(m,)`` of the attacker's own, the column included.
        victims: rows ``(n, d)`` and labels ``(n,)``; their column is used to judge only.
        column: number of the hidden column.

    Raises:
        UnsupportedError: when there are fewer than 20 known rows, or the column does not suit (see
            :func:`candidates`).
    """
    rows, labels = known
    if len(rows) < 20 or len(victims[0]) == 0:
        raise UnsupportedError(f"{len(rows)} known rows and {len(victims[0])} victims: at least 20 and 1 are needed")
    if not 0 <= column < rows.shape[1]:
        raise UnsupportedError(f"there is no column {column}: rows have {rows.shape[1]}")
    values = candidates(np.concatenate([rows[:, column], victims[0][:, column]]))
    truth_known = np.searchsorted(values, rows[:, column])
    plain = _others(rows, labels, column), _others(*victims, column)
    told = tuple(_told(ask, *side, column, values) for side in (known, victims))
    guessed = []
    for extra in (False, True):
        features = [np.concatenate([p, t], 1) if extra else p for p, t in zip(plain, told, strict=True)]
        model = HistGradientBoostingClassifier(
            max_iter=60,
            max_leaf_nodes=15,
            early_stopping=False,  # pyright: ignore[reportArgumentType]
            random_state=seed,
        )
        model.fit(features[0], truth_known)
        guessed.append(model.predict(features[1]).astype(np.int64))
    return Guesses(np.searchsorted(values, victims[0][:, column]), guessed[1], guessed[0], values)


def _others(rows: Floats, labels: Ints, column: int) -> Floats:
    return np.concatenate([np.delete(rows, column, 1), labels[:, None].astype(np.float64)], 1)


def _told(ask: Ask, rows: Floats, labels: Ints, column: int, values: Floats) -> Floats:
    """Log probability of the label for each candidate value ``(n, v)``, and which value makes it highest ``(n, v)``."""
    said = []
    for value in values:
        asked = rows.copy()
        asked[:, column] = value
        said.append(log_softmax(ask(asked).astype(np.float64), axis=1)[np.arange(len(rows)), labels])
    told = np.stack(said, 1)
    best = (told == told.max(1, keepdims=True)).astype(np.float64)
    return np.concatenate([told, told - told.mean(1, keepdims=True), best], 1)
