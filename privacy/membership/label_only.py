"""Label-only attack: members sit farther from the decision boundary (arXiv 2007.14321)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ...attacks.errors import UnsupportedError
from ...attacks.evasion.hopskipjump import HopSkipJump
from ...attacks.streams import Streams
from ...attacks.threat import Threat
from .augment import Augmentations
from .statistics import Floats

Predict = Callable[[Tensor], Tensor]
"""Classes ``(b,)`` of inputs ``(b, ...)``: all that the attacker sees."""

_BISECTIONS = 5
_REACH = 5.0


@dataclass(frozen=True, slots=True)
class LabelOnly:
    """Scores a record by its distance to the decision boundary, from predicted labels alone.

    The distance is that of the smallest change found by HopSkipJump. On networks that overfit Fashion-MNIST it can be
    told apart neither from a threshold on the loss nor, with a quarter fewer queries, from the shortest of random
    directions (``benchmarks/shadow.py --tasks labels``). Inputs without bounds, where that attack has nowhere to start,
    are walked from along random directions. With ``augmentations`` the share of a picture's versions that keep their
    label is added, and decides before the distance: for models that were trained with such versions. A misclassified
    record scores below all others.

    Args:
        queries: of each record for its distance, at least 100.
        augmentations: versions of a picture that are asked for; itself alone, which adds nothing, when left out.
    """

    queries: int = 100
    augmentations: Augmentations = Augmentations(flip=False)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.queries < 100:
            raise UnsupportedError(f"queries is {self.queries}: finding a distance takes at least 100 of each record")

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        y: Tensor,
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        ids: Tensor | None = None,
    ) -> Floats:
        """Membership scores ``(n,)`` of records ``(n, ...)`` with labels ``(n,)``; draws belong to the sample ids."""
        streams = Streams.from_seed(seed, torch.arange(len(x)) if ids is None else ids)
        right = torch.stack([predict(view) == y for view in self.augmentations(x)])
        finite = math.isfinite(bounds[0]) and math.isfinite(bounds[1])
        distance = self._walked(predict, x, y, bounds, streams) if finite else self._crossed(predict, x, y, streams)
        score = distance + right[1:].float().mean(0) if len(right) > 1 else distance
        return torch.where(right[0], score, score - 3).double().numpy()

    def _walked(self, predict: Predict, x: Tensor, y: Tensor, bounds: tuple[float, float], streams: Streams) -> Tensor:
        """Distance ``(n,)``, root mean square per feature as a share of the bounds' width; 1 where none is found."""
        width = bounds[1] - bounds[0]
        other = int(y.max()) + 1  # stands for all classes that are no record's label

        def answers(points: Tensor) -> Tensor:
            return one_hot(predict(points).clamp(max=other), other + 1).float()

        threat = Threat("l2", width * math.sqrt(x[0].numel()), bounds=bounds)
        found = HopSkipJump(queries=self.queries)(answers, x, y, threat, generator=streams)
        distance = (found - x).flatten(1).square().mean(1).sqrt() / width
        return torch.where(predict(found) == y, torch.ones_like(distance), distance)

    def _crossed(self, predict: Predict, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """Distance ``(n,)`` along random directions, root mean square per feature as a share of what is looked at."""
        distance = torch.full((len(x),), _REACH)
        for direction in range(self.queries // (_BISECTIONS + 1)):
            step = streams.fork(1000 + direction).normal(x.shape[1:])
            distance = torch.minimum(distance, crossing(predict, x, y, step, _REACH, _BISECTIONS))
        return distance / _REACH


def crossing(predict: Predict, x: Tensor, y: Tensor, direction: Tensor, reach: float, bisections: int) -> Tensor:
    """Size ``(n,)`` at which the label changes along a direction of unit root mean square; ``reach`` if never."""
    rms = direction.flatten(1).square().mean(1).sqrt().clamp_min(1e-12)
    unit = direction / rms.view(-1, *[1] * (x.dim() - 1))

    def kept(size: Tensor) -> Tensor:
        return predict(x + unit * size.view(-1, *[1] * (x.dim() - 1))) == y

    inside, outside = torch.zeros(len(x)), torch.full((len(x),), reach)
    never = kept(outside)
    for _ in range(bisections):
        middle = (inside + outside) / 2
        same = kept(middle)
        inside, outside = torch.where(same, middle, inside), torch.where(same, outside, middle)
    return torch.where(never, torch.full_like(outside, reach), outside)
