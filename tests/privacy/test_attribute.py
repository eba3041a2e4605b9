"""Attribute inference counts only what the model adds; exposure ranks canaries in bits."""

import math

import numpy as np
import pytest
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy.attribute import candidates, infer_attribute
from auditorch.privacy.exposure import exposure, exposures
from numpy.typing import NDArray
from scipy.stats import norm

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


def people(n: int, seed: int, told: float = 0.0) -> Rows:
    """Rows of three columns, the second hidden and of three values; with ``told`` the third column reveals it."""
    rng = np.random.default_rng(seed)
    hidden = rng.integers(0, 3, n).astype(np.float64)
    third = np.where(rng.random(n) < told, hidden, rng.integers(0, 3, n))
    rows = np.stack([rng.standard_normal(n), hidden, third], 1)
    return rows, rng.integers(0, 2, n)


class Remembers:
    """Surer of the label of a row that it has seen, hidden value included; says nothing of any other row."""

    def __init__(self, rows: Rows) -> None:
        self.labels = {tuple(row): label for row, label in zip(rows[0].tolist(), rows[1].tolist(), strict=True)}

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        logits = np.zeros((len(x), 2))
        for i, row in enumerate(x.tolist()):
            label = self.labels.get(tuple(row))
            if label is not None:
                logits[i, label] = 4.0
        return logits


def test_a_model_that_remembers_rows_gives_their_hidden_values_away() -> None:
    known, victims = people(400, 0), people(300, 1)
    both = np.concatenate([known[0], victims[0]]), np.concatenate([known[1], victims[1]])
    found = infer_attribute(Remembers(both), known, victims, column=1)
    assert (found.baseline == found.truth).mean() == pytest.approx(1 / 3, abs=0.09)
    assert (found.attack == found.truth).mean() > 0.97
    shares = [(guess == found.truth).mean() for guess in (found.attack, found.baseline)]
    assert found.gain.mean() == pytest.approx(shares[0] - shares[1])


def test_what_other_columns_tell_anyway_is_no_leak() -> None:
    known, victims = people(400, 0, told=0.8), people(400, 1, told=0.8)
    found = infer_attribute(Remembers(people(1, 5)), known, victims, column=1)
    assert (found.baseline == found.truth).mean() > 0.8
    assert (found.attack == found.truth).mean() > 0.8
    assert abs(found.gain.mean()) < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_knows_nothing_adds_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = infer_attribute(lambda x: rng.standard_normal((len(x), 2)), people(300, 2), people(300, 3 + seed), column=1)
    half = 3.5 * found.gain.std() / len(found.gain) ** 0.5
    assert abs(found.gain.mean()) < half


def test_the_hidden_value_itself_is_never_shown_to_the_attack() -> None:
    asked: list[NDArray[np.float64]] = []

    def ask(x: NDArray[np.float64]) -> NDArray[np.float64]:
        asked.append(x)
        return np.zeros((len(x), 2))

    victims = people(50, 1)
    infer_attribute(ask, people(60, 0), victims, column=1)
    of_victims = [x for x in asked if len(x) == 50]
    assert [set(x[:, 1]) for x in of_victims] == [{0.0}, {1.0}, {2.0}]
    assert all(np.array_equal(np.delete(x, 1, 1), np.delete(victims[0], 1, 1)) for x in of_victims)


def test_columns_that_cannot_be_guessed_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="21 values"):
        candidates(np.arange(21.0))
    with pytest.raises(UnsupportedError, match="1 values"):
        candidates(np.zeros(4))
    with pytest.raises(UnsupportedError, match="no column 7"):
        infer_attribute(lambda x: x, people(30, 0), people(5, 1), column=7)
    with pytest.raises(UnsupportedError, match="at least 20"):
        infer_attribute(lambda x: x, people(3, 0), people(5, 1), column=1)


def test_exposure_of_a_full_ranking_is_that_of_the_paper() -> None:
    references = np.arange(1, 1024, dtype=np.float64)  # with the canary 1024 fillings
    assert exposure(0.0, references).value == 10
    assert exposure(0.0, references).rank == 1
    assert exposure(511.5, references).value == pytest.approx(1)
    assert exposure(2000.0, references).value == 0
    found = exposure(3.5, references)
    assert (found.low, found.value, found.high) == (pytest.approx(8),) * 3


def test_exposure_of_a_canary_that_was_not_planted_is_on_average_the_entropy_of_a_uniform_rank() -> None:
    rng = np.random.default_rng(0)
    references = rng.standard_normal(500)
    found = [one.value for one in exposures(rng.standard_normal(3000), references)]
    assert np.mean(found) == pytest.approx(1 / math.log(2), abs=0.08)


def test_a_sample_bounds_what_it_can_show_and_the_fitted_curve_goes_on() -> None:
    rng = np.random.default_rng(1)
    references, canary = 100 + 5 * rng.standard_normal(2000), 70.0
    found = exposure(canary, references, space=1e9)
    assert found.low < found.value < found.high
    assert found.low == pytest.approx(-math.log2(1 - 0.025 ** (1 / 2000)))
    assert found.high == pytest.approx(math.log2(1e9))
    assert found.extrapolated == pytest.approx(-norm.logcdf(-6) / math.log(2), rel=0.15)


def test_a_curve_that_does_not_fit_is_not_used_and_nonsense_is_refused() -> None:
    lumps = np.concatenate([np.zeros(50) + np.arange(50) * 1e-3, np.full(50, 9.0) + np.arange(50) * 1e-3]).astype(
        np.float64
    )
    assert exposure(-1.0, lumps).extrapolated is None
    assert exposure(1.0, np.ones(12)).extrapolated is None
    with pytest.raises(UnsupportedError, match="at least 10"):
        exposure(0.0, np.zeros(3))
    with pytest.raises(UnsupportedError, match="fewer than"):
        exposure(0.0, np.arange(20.0), space=5)
    with pytest.raises(UnsupportedError, match="finite"):
        exposure(math.nan, np.arange(20.0))
