"""What a model's predictions on corrupted images say: accuracies with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...attacks.corruptions.common import GROUPS
from ...attacks.statistics import bootstrap_sums, logit_interval, percentile_interval
from ...reports.record import Metric
from .metrics import estimate, rate

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Mean:
    """An accuracy averaged over cells, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Which predictions were right.

    Attributes:
        clean: bool ``(n,)``, on the clean images.
        right: bool ``(corruptions, severities, n)``.
        corruptions, severities: what the axes stand for.
        seed: of the bootstrap.
        base_right: as ``right``, for the model that this one was made from; None on that model itself.
    """

    clean: Bools
    right: Bools
    corruptions: Sequence[str]
    severities: Sequence[int]
    seed: int
    base_right: Bools | None = None

    @property
    def n(self) -> int:
        return len(self.clean)

    def by_corruption(self, name: str) -> Mean:
        """Mean over the severities."""
        return mean(self.right[self.corruptions.index(name)])

    def by_severity(self, severity: int) -> Mean:
        """Mean over the corruptions."""
        return mean(self.right[:, self.severities.index(severity)])

    def groups(self) -> dict[str, list[int]]:
        """Rows of the examined corruptions in each of the paper's groups that has some."""
        rows = {name: [i for i, own in enumerate(self.corruptions) if own in group] for name, group in GROUPS.items()}
        return {name: own for name, own in rows.items() if own}

    def worst(self) -> str:
        """The corruption with the lowest accuracy."""
        return self.corruptions[int(self.right.mean((1, 2)).argmin())]

    def metrics(self) -> Iterator[Metric]:
        yield rate("clean_accuracy", int(self.clean.sum()), self.n, label="Clean accuracy", higher_is_better=True)
        overall = mean(self.right)
        yield self._accuracy("corruption_accuracy", overall, "Mean accuracy over corruptions and severities")
        yield estimate(
            "mean_corruption_error",
            1 - overall.value,
            (1 - overall.high, 1 - overall.low),
            self.n,
            label="Mean corruption error, not normalised",
            higher_is_better=False,
            method="logit-normal over samples",
            unit="rate",
        )
        yield self._loss()
        if self.base_right is not None:
            yield self._mce(self.base_right)
        worst = self.worst()
        yield self._accuracy(
            "worst_corruption_accuracy", self.by_corruption(worst), f"Accuracy under the worst corruption, {worst}"
        )
        for severity in self.severities:
            yield self._accuracy(
                f"accuracy_at_severity_{severity}", self.by_severity(severity), f"Mean accuracy at severity {severity}"
            )
        for name in self.corruptions:
            yield self._accuracy(f"{name}_accuracy", self.by_corruption(name), f"Accuracy under {spoken(name)}")

    def _accuracy(self, name: str, value: Mean, label: str) -> Metric:
        return estimate(
            name,
            value.value,
            (value.low, value.high),
            self.n,
            label=label,
            higher_is_better=True,
            method="logit-normal over samples",
            unit="rate",
        )

    def _mce(self, base_right: Bools) -> Metric:
        """The paper's mean corruption error, with the original model in the place of AlexNet."""
        own, base = ((~right).sum(1).T.astype(np.float64) for right in (self.right, base_right))
        c = len(self.corruptions)
        resampled = bootstrap_sums(np.concatenate([own, base], 1), seed=self.seed)
        ratios = relative_error(resampled[:, :c], resampled[:, c:])
        ratios = ratios[~np.isnan(ratios)]
        return estimate(
            "mce",
            float(relative_error(own.sum(0), base.sum(0))),
            percentile_interval(ratios) if len(ratios) else (float("nan"), float("nan")),
            self.n,
            label="Mean corruption error, divided by the original model's",
            higher_is_better=False,
            method="bootstrap",
        )

    def _loss(self) -> Metric:
        """Paired: each sample's own clean prediction is what its corrupted ones are compared with."""
        lost = self.clean - self.right.mean((0, 1))
        resampled = bootstrap_sums(lost[:, None], seed=self.seed)[:, 0] / self.n
        return estimate(
            "relative_corruption_error",
            float(lost.mean()),
            percentile_interval(resampled),
            self.n,
            label="Accuracy lost to corruption",
            higher_is_better=False,
            method="bootstrap",
        )


def relative_error(own: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over corruptions (last axis) of the ratio of two errors, those left out where the base makes none."""
    counted = base > 0
    ratio = np.divide(own, base, out=np.zeros_like(own), where=counted)
    return np.divide(ratio.sum(-1), counted.sum(-1), out=np.full(own.shape[:-1], np.nan), where=counted.any(-1))


def mean(right: Bools) -> Mean:
    """The mean of ``right`` ``(..., n)``; for the interval the samples are independent, their corruptions not."""
    n = right.shape[-1]
    shares = right.reshape(-1, n).mean(0)
    value = float(shares.mean())
    variance = float(shares.var(ddof=1)) / n if n > 1 else 0.0
    low, high = logit_interval(min(max(value, 0.0), 1.0), variance, n) if n > 1 else (0.0, 1.0)
    return Mean(value, low, high)


def spoken(name: str) -> str:
    """``gaussian noise`` for ``gaussian_noise``."""
    return name.replace("_", " ").replace("jpeg", "JPEG")
