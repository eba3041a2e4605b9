"""All metrics of an evasion run, from which samples were right and at what radius each of them broke."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...attacks.statistics import bootstrap_sums, percentile_interval, quantile_interval
from ...attacks.threat import Norm
from ...reports.record import Metric
from .metrics import estimate, rate

_QUANTILES = ((0.1, "p10", "10th percentile of"), (0.5, "median", "Median"), (0.9, "p90", "90th percentile of"))
_UNITS: dict[Norm, str] = {"linf": "input units", "l2": "input units", "l1": "input units", "l0": "features"}


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found on n samples.

    Attributes:
        y: int64 ``(n,)``, labels.
        correct: bool ``(n,)``, whether the clean input was classified as labelled.
        radius: ``(n,)``, smallest radius at which a correct sample is known to break, infinity where none is known.
        distance: ``(n,)``, size of that perturbation.
        eps: the radius that the check is about.
        radii: all radii examined, ascending, ``eps`` among them.
    """

    y: NDArray[np.int64]
    correct: NDArray[np.bool_]
    radius: NDArray[np.floating]
    distance: NDArray[np.floating]
    norm: Norm
    eps: float
    radii: Sequence[float]

    def survives(self, eps: float) -> NDArray[np.bool_]:
        """Bool ``(n,)``: right on the clean input, and no adversarial input known within ``eps``."""
        return self.correct & ~(self.radius <= eps)

    @property
    def fallen(self) -> NDArray[np.bool_]:
        """Bool ``(n,)``: right on the clean input and broken within ``self.eps``."""
        return self.correct & (self.radius <= self.eps)

    def metrics(self) -> tuple[Metric, ...]:
        return (*self._rates(), *self._distortions())

    def _rates(self) -> Iterator[Metric]:
        n, right, left = len(self.y), int(self.correct.sum()), int(self.survives(self.eps).sum())
        ball = ball_text(self.norm, self.eps)
        yield rate("clean_accuracy", right, n, label="Clean accuracy", higher_is_better=True)
        yield rate("robust_accuracy", left, n, label=f"Robust accuracy, {ball}", higher_is_better=True)
        label = f"Attack success among samples classified correctly, {ball}"
        yield rate("attack_success_rate", right - left, right, label=label, higher_is_better=False)
        for eps in self.radii:
            if eps != self.eps:
                label = f"Robust accuracy, {ball_text(self.norm, eps)}"
                count = int(self.survives(eps).sum())
                yield rate(f"robust_accuracy_at_{eps:.4g}", count, n, label=label, higher_is_better=True)

    def _distortions(self) -> Iterator[Metric]:
        sizes = self.distance[self.fallen].astype(np.float64)
        n, unit = len(sizes), _UNITS[self.norm]
        if n == 0:
            sizes = np.array([np.nan])  # every figure is then undefined
        means = bootstrap_sums(sizes[:, None])[:, 0] / len(sizes)
        figures = [("mean_distortion", "Mean", float(sizes.mean()), percentile_interval(means), "bootstrap")]
        for q, name, words in _QUANTILES:
            value, interval = float(np.quantile(sizes, q)), quantile_interval(sizes, q)
            figures.append((f"{name}_distortion", words, value, interval, "order statistics"))
        for name, words, value, interval, method in figures:
            label = f"{words} {self.norm} distortion of successes"
            yield estimate(name, value, interval, n, label=label, higher_is_better=None, method=method, unit=unit)


def radius_text(norm: Norm, eps: float) -> str:
    """``8/255`` where a linf radius is a whole number of grey levels, otherwise four digits."""
    levels = eps * 255
    whole = norm == "linf" and 0 < levels < 255 and abs(levels - round(levels)) < 1e-6
    return f"{round(levels)}/255" if whole else f"{eps:.4g}"


def ball_text(norm: Norm, eps: float) -> str:
    """``linf ≤ 8/255``."""
    return f"{norm} ≤ {radius_text(norm, eps)}"
