"""All metrics of a certification, from what was proven and what was broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...attacks.statistics import bootstrap_sums, percentile_interval
from ...attacks.threat import Norm
from ...reports.record import Metric
from .evasion_measures import ball_text
from .metrics import estimate, rate

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found on n samples.

    Attributes:
        correct: bool ``(n,)``, right on the clean input (a smoothed classifier that abstains is not).
        proven: bool ``(r, n)``, right for every input within each of ``radii``.
        broken: bool ``(n,)``, the attack at ``eps`` succeeded.
        radii: ascending, ``eps`` among them.
        radius: ``(n,)``, certified radius, 0 where wrong; only where each sample has its own (smoothing).
        abstained: bool ``(n,)``; only for smoothing.
    """

    correct: Bools
    proven: Bools
    broken: Bools
    norm: Norm
    eps: float
    radii: Sequence[float]
    radius: NDArray[np.float64] | None = None
    abstained: Bools | None = None

    @property
    def at_eps(self) -> Bools:
        return self.proven[list(self.radii).index(self.eps)]

    @property
    def robust(self) -> Bools:
        """Right, and not broken by the attack at ``eps``."""
        return self.correct & ~self.broken

    @property
    def contradicted(self) -> Bools:
        """Proven and broken all the same: must be nowhere."""
        return self.at_eps & self.broken

    def metrics(self) -> Iterator[Metric]:
        n, ball = len(self.correct), ball_text(self.norm, self.eps)
        yield rate("clean_accuracy", int(self.correct.sum()), n, label="Clean accuracy", higher_is_better=True)
        label = f"Certified accuracy, {ball}"
        yield rate("certified_accuracy", int(self.at_eps.sum()), n, label=label, higher_is_better=True)
        label = f"Accuracy under attack, {ball}"
        yield rate("empirical_robust_accuracy", int(self.robust.sum()), n, label=label, higher_is_better=True)
        for proven, eps in zip(self.proven, self.radii, strict=True):
            if eps != self.eps:
                label = f"Certified accuracy, {ball_text(self.norm, eps)}"
                name = f"certified_accuracy_at_{eps:.4g}"
                yield rate(name, int(proven.sum()), n, label=label, higher_is_better=True)
        yield rate(
            "contradicted",
            int(self.contradicted.sum()),
            n,
            label="Certified and broken all the same",
            higher_is_better=False,
        )
        if self.abstained is not None:
            label = "Smoothed classifier abstains"
            yield rate("abstained", int(self.abstained.sum()), n, label=label, higher_is_better=False)
        if self.radius is not None:
            yield self._mean_radius(self.radius)

    def _mean_radius(self, radius: NDArray[np.float64]) -> Metric:
        means = bootstrap_sums(radius[:, None])[:, 0] / len(radius)
        return estimate(
            "mean_certified_radius",
            float(radius.mean()),
            percentile_interval(means),
            len(radius),
            label="Mean certified radius, wrong predictions counting 0",
            higher_is_better=True,
            method="bootstrap",
            unit="input units",
        )
