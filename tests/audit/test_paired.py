"""Paired tests against published figures, a second implementation, and their promised error rates."""

import numpy as np
import pytest
from auditorch.audit.paired import mcnemar_exact, paired_change, paired_rate_interval
from scipy.stats import binomtest, ttest_rel


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 7), (5, 5), (0, 12), (30, 51)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(b: int, c: int) -> None:
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-12)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_published_example() -> None:
    # Fagerland, Lydersen and Laake (2013), airway hyper-responsiveness: 1 and 7 discordant of 21 pairs.
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert paired_rate_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=1e-3)


def test_the_interval_mirrors_and_ends_at_one() -> None:
    low, high = paired_rate_interval(9, 3, 40)
    assert paired_rate_interval(3, 9, 40) == pytest.approx((-high, -low))
    assert paired_rate_interval(5, 0, 5)[1] == 1.0
    assert paired_rate_interval(0, 0, 50) == pytest.approx((-0.0713, 0.0713), abs=1e-3)


def test_other_outcomes_are_compared_by_the_paired_t() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=60)
    after = before + rng.normal(0.2, 0.4, size=60)
    found = paired_change(before, after)
    expected = ttest_rel(after, before)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9)
    assert paired_change(before, before).p == 1.0


def test_pairing_sees_what_overlapping_intervals_hide() -> None:
    before = np.repeat([1.0, 0.0], [150, 50])
    after = before.copy()
    after[:9] = 0.0
    found = paired_change(before, after)
    assert (found.gained, found.lost) == (0, 9)
    assert found.changed()
    assert found.high < 0


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_error_rates_are_as_promised(shift: float) -> None:
    rng = np.random.default_rng(1)
    n, runs, wrong, covered = 150, 400, 0, 0
    for _ in range(runs):
        u = rng.random(n)
        before, after = (u < 0.8).astype(float), ((u < 0.7) | (u > 0.9 - shift)).astype(float)
        found = paired_change(before, after)
        wrong += found.changed()
        covered += found.low <= shift <= found.high
    assert covered / runs >= 0.92
    if shift == 0:
        assert wrong / runs <= 0.05


@pytest.mark.parametrize("counts", [(-1, 0, 3), (2, 2, 3), (0, 0, 0)])
def test_counts_that_do_not_fit_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        paired_rate_interval(*counts)
