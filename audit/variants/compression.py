"""What the variants that make a model smaller have in common: training after the cut, and agreement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from pydantic import Field
from torch import Tensor, nn

from ...attacks.models import attacking
from ...defenses.training import TrainingConfig, fit
from ...reports.record import Metric
from ..checks.base import Context
from ..checks.metrics import rate
from ..errors import UnsupportedError
from ..target import Target
from .base import Built, Variant
from .training import training_data

COMPARED = 512
"""Training inputs on which the predictions of two models are compared, at most."""


class CompressionVariant(Variant):
    """A smaller model made from the target's weights, trained further when ``train`` is given."""

    train: str | None = Field(
        default=None, description="Training data: the smaller model is trained on it, and compared with the target."
    )
    epochs: int = Field(default=3, ge=0, description="Passes over `train` after the cut; 0 for none.")
    batch_size: int = Field(default=64, ge=1, description="Samples per step of that training.")
    lr: float = Field(default=1e-3, gt=0, description="Its highest learning rate (AdamW, cosine).")

    def files(self) -> tuple[str, ...]:
        return () if self.train is None else (self.train,)

    def finished(
        self,
        module: nn.Module,
        summary: str,
        target: Target,
        context: Context,
        *,
        metrics: Callable[[nn.Module], tuple[Metric, ...]] = lambda _: (),
        holding: AbstractContextManager[None] | None = None,
        parameters: Mapping[str, object] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Built:
        """Trains ``module`` where asked to, and says what it is.

        Args:
            metrics: made of the finished module.
            holding: what must hold while it is trained, such as zeros that stay.
        """
        found: list[Metric] = []
        if self.train is not None:
            if self.epochs:
                with holding or nullcontext():
                    found.append(self._trained(module, self.train, target, context))
                summary = f"{summary} Then trained for {self.epochs} epochs."
            x = compared_inputs(target, context, self.train)
            found.append(agreement(module, target.module, x, "the target"))
        module.eval()
        return Built(
            module=module,
            summary=summary,
            metrics=(*metrics(module), *found),
            warnings=warnings,
            parameters=parameters or {},
        )

    def _trained(self, module: nn.Module, train: str, target: Target, context: Context) -> Metric:
        x, y = training_data(target, context, train)
        context.progress.start(f"{self.title}: training", self.epochs * len(y))
        config = TrainingConfig(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, seed=context.seed)
        history = fit(module, x, y, config=config, on_samples=context.progress.advance)
        return Metric(
            name="training_seconds", value=history.seconds, unit="s", higher_is_better=False, label="Training time"
        )


def compared_inputs(target: Target, context: Context, source: str) -> Tensor:
    """At most 512 evenly spaced training inputs, encoded, on the target's device."""
    x, y = training_data(target, context, source)
    count = min(len(y), COMPARED)
    return x[torch.arange(count) * len(y) // count].to(target.device)


def agreement(module: nn.Module, other: nn.Module, x: Tensor, whom: str, name: str = "agreement") -> Metric:
    """Share of inputs on which two models predict the same class."""
    same = int((predictions(module, x) == predictions(other, x)).sum())
    return rate(name, same, len(x), label=f"Predicts as {whom} does", higher_is_better=True)


@torch.no_grad()
def predictions(module: nn.Module, x: Tensor, batch_size: int = 128) -> Tensor:
    """Classes ``(n,)`` in eval mode."""
    with attacking(module):
        return torch.cat([module(part).argmax(1) for part in x.split(batch_size)])


def need_images(target: Target, what: str) -> None:
    """Refuses targets that do not take images in 0..1.

    Raises:
        UnsupportedError: saying what the target takes.
    """
    if target.modality != "image" or target.bounds != (0.0, 1.0):
        raise UnsupportedError(f"{what} works on images in 0..1; this model takes {target.modality} in {target.bounds}")
