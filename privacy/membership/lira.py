"""LiRA: is a record's score more like those of models that saw it, or of models that did not? (arXiv 2112.03570)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

from ...attacks.errors import UnsupportedError
from .statistics import Floats, Moments, References

Variance = Literal["auto", "record", "fixed"]

FEW = 32
"""Below so many models on a side a record's own variance is too uncertain (arXiv 2112.03570, section VI-D)."""


@dataclass(frozen=True, slots=True)
class LiRA:
    """Likelihood ratio attack: a Gaussian over the scores of reference models for each record.

    Args:
        online: compare with models that were trained on the record as well as with those that were not. Offline asks
            only how unlikely the score is for a model that was not.
        variance: ``record``, each record's own; ``fixed``, one for all, steadier with few models; ``auto`` takes
            ``fixed`` below 32 models on a side.
    """

    online: bool = True
    variance: Variance = "auto"

    def __call__(self, target: Floats, references: References) -> Floats:
        """Membership scores ``(n,)``; queries of the same record are averaged.

        Args:
            target: scores ``(n, q)`` of the model under attack, by :func:`.statistics.scaled_confidence`.
            references: the same of the reference models.

        Raises:
            UnsupportedError: when shapes do not fit or a record has too few models on a side.
        """
        if target.shape != references.scores.shape[1:]:
            raise UnsupportedError(f"target scores have shape {target.shape}, references {references.scores.shape}")
        out = references.moments(member=False)
        _require(out, "were not trained on it", 1 if self._fixed(out) else 2)
        scale = self._deviation(out)
        if not self.online:
            return norm.logcdf(target, out.mean, scale).mean(1)
        inside = references.moments(member=True)
        _require(inside, "were trained on it", 1 if self._fixed(inside) else 2)
        ratio = norm.logpdf(target, inside.mean, self._deviation(inside)) - norm.logpdf(target, out.mean, scale)
        return ratio.mean(1)

    def _fixed(self, moments: Moments) -> bool:
        return self.variance == "fixed" or (self.variance == "auto" and int(moments.count.min()) < FEW)

    def _deviation(self, moments: Moments) -> Floats:
        variance = np.broadcast_to(moments.pooled, moments.mean.shape) if self._fixed(moments) else moments.variance
        return np.sqrt(variance) + 1e-12


def _require(moments: Moments, what: str, least: int) -> None:
    poor = int((moments.count < least).sum())
    if poor:
        raise UnsupportedError(f"{poor} records have fewer than {least} reference models that {what}: train more")
