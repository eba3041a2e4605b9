"""What an attack of the Adversarial Robustness Toolbox needs around it: a classifier, seeds and silence."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ...attack import Model
from ...search import fooled
from ...threat import Threat

_BATCH = 256
_NEVER = -1e9


class Enough(Exception):  # noqa: N818 - a signal, not an error
    """Ends an attack from inside a query: it has what it came for, or has spent its queries."""


class Witness:
    """Sees every query made for one sample and keeps the best fooling point among them.

    The toolbox returns where an attack stopped, which need not be the closest point that it met.

    Args:
        x: ``(1, ...)``, the clean sample.
        y: int64 ``(1,)``.
        minimal: keep the closest fooling point; otherwise end the attack at the first one in the ball.
        max_queries: end the attack after this many; None: never.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, *, minimal: bool, max_queries: int | None) -> None:
        self.x, self.y, self.threat = x, y, threat
        self.minimal, self.max_queries = minimal, max_queries
        self.best: Tensor | None = None
        self._distance = float("inf")
        self._queries = 0

    def see(self, points: Tensor, logits: Tensor) -> None:
        """Looks at a batch of queries ``(m, ...)`` and their logits ``(m, k)``.

        Raises:
            Enough: when the attack need not go on.
        """
        hits = points[fooled(logits, self.y.expand(len(points)), targeted=self.threat.targeted)]
        if len(hits):
            hits = hits[self.threat.in_bounds(hits) if self.minimal else self.threat.contains(hits, self.x)]
        if len(hits):
            distance, at = self.threat.distance(hits, self.x).min(0)
            if float(distance) < self._distance:
                self.best, self._distance = hits[at][None], float(distance)
        self._queries += len(points)
        found = self.best is not None and not self.minimal
        if found or (self.max_queries is not None and self._queries >= self.max_queries):
            raise Enough


class Logits(nn.Module):
    """The model as the toolbox sees it: float32 on the CPU, in and out, whatever the toolbox passes (often float64).

    The model is hidden from the toolbox's ``train()``, ``to()`` and search for layers.

    Args:
        model: what to call, with inputs in the dtype and on the device of ``like``.
        columns: classes that the toolbox is to see; those that the model lacks get no probability.
        bounds: queries are moved inside them; the toolbox does so only sometimes.
        probabilities: return softmax probabilities, which some attacks insist on.
        witness: is shown every query.
    """

    def __init__(
        self,
        model: Model,
        like: Tensor,
        columns: int,
        bounds: tuple[float, float],
        *,
        probabilities: bool,
        witness: Witness | None,
    ) -> None:
        super().__init__()
        self._columns, self._bounds = columns, bounds
        self._call: Callable[[Tensor], Tensor] = lambda z: model(z)
        self._like, self._probabilities, self._witness = like, probabilities, witness

    def forward(self, x: Tensor) -> Tensor:
        points = x.to(self._like).clamp(*self._bounds)
        if self._witness is not None:
            points = exact_where_unchanged(points, self._witness.x)
        logits = self._call(points)
        if self._witness is not None:
            self._witness.see(points.detach(), logits.detach())
        missing = self._columns - logits.shape[1]
        logits = functional.pad(logits.float(), (0, missing), value=_NEVER)
        return (logits.softmax(1) if self._probabilities else logits).cpu()


def exact_where_unchanged(points: Tensor, x: Tensor) -> Tensor:
    """``points`` with features that differ from ``x`` only by float32 rounding set to ``x``.

    The toolbox computes in float32, in part on a scale of 0..255. Gradients pass.
    """
    slack = 4 * torch.finfo(torch.float32).eps * x.abs().clamp_min(0.125)
    rounding = (x - points).detach()
    return points + torch.where(rounding.abs() <= slack, rounding, 0)


def classifier(module: nn.Module, x: Tensor, k: int, threat: Threat) -> Any:
    """The toolbox's classifier around ``module`` for inputs like ``x`` ``(n, ...)`` and ``k`` classes."""
    estimators = import_module("art.estimators.classification.pytorch")
    estimator = estimators.PyTorchClassifier(
        model=module,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=k,
        clip_values=threat.bounds,
        device_type="cpu",
    )

    @torch.no_grad()
    def predict(inputs: NDArray[Any], batch_size: int = _BATCH, **_: object) -> NDArray[np.float32]:
        parts = torch.from_numpy(np.asarray(inputs)).split(max(batch_size, _BATCH))
        return torch.cat([module(part) for part in parts]).numpy()

    # The toolbox's own builds a data loader for each call: twice the time of a small model's forward pass.
    estimator.predict = predict
    return estimator


def attack_class(path: str) -> Any:
    """The toolbox's attack at ``module:name`` under its evasion attacks; imported only now, which takes seconds."""
    module, name = path.split(":")
    return getattr(import_module(f"art.attacks.evasion.{module}"), name)


def to_numpy(x: Tensor) -> NDArray[np.float32]:
    return x.detach().cpu().float().numpy()


@contextmanager
def undisturbed(seed: int) -> Iterator[None]:
    """Seeds the global generators that the toolbox draws from and gives them back as found; mutes its log."""
    log = logging.getLogger("art")
    level, numpy_state, python_state = log.level, np.random.get_state(), random.getstate()
    try:
        log.setLevel(logging.CRITICAL)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"art\.")
            torch.manual_seed(seed)
            yield
    finally:
        log.setLevel(level)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
