"""Whether one small perturbation, added to every image, makes the model err."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ...attacks.streams import Streams
from ...attacks.threat import Threat
from ...attacks.universal.perturbation import UniversalPerturbation, perturbed
from .evasion import DEFAULT_EPS, Radius
from .images import Images
from .universal_base import UniversalCheck


class Universal(UniversalCheck):
    """One perturbation for all images, within a norm ball, fitted on half of the samples and judged on the rest."""

    name: ClassVar[str] = "universal"
    title: ClassVar[str] = "Universal perturbation"
    question: ClassVar[str] = "Does one small perturbation, added to every image, make the model err?"
    references: ClassVar[tuple[str, ...]] = (
        "Moosavi-Dezfooli et al., Universal Adversarial Perturbations, arXiv 1610.08401",
        "Shafahi et al., Universal Adversarial Training, arXiv 1811.11304",
    )
    metrics: ClassVar[Mapping[str, str]] = UniversalCheck.metrics
    cost: ClassVar[str] = "steps x batch_size forward and backward passes, then three forward passes per sample"
    words: ClassVar[str] = "a universal perturbation"

    norm: Literal["linf", "l2"] = Field(default="linf", description="How the perturbation is measured: linf or l2.")
    eps: Radius = Field(
        default_factory=lambda data: DEFAULT_EPS[data.get("norm", "linf")],
        description="Radius on the scale 0..1, also as a fraction: 8/255. By norm: linf 8/255, l2 0.5.",
    )

    @field_validator("eps")
    @classmethod
    def _above_zero(cls, eps: float) -> float:
        if eps <= 0:
            raise ValueError("eps must be above 0")
        return eps

    def fit(self, images: Images, goal: Tensor, seed: int) -> dict[str, Tensor]:
        device = images.target.device
        attack = UniversalPerturbation(steps=self.steps, batch_size=self.batch_size or 64)
        threat = Threat(self.norm, self.eps, self.target is not None)
        generator = torch.Generator().manual_seed(seed)
        # The module itself is frozen for the fit, since Images.model hides it from the attack.
        with images.attacked():
            delta = attack.fit(images.model, images.x.to(device), goal.to(device), threat, generator=generator)
        noise = Streams.from_seed(seed, torch.tensor([0])).fork(12).normal(delta.shape)[0]
        control = noise.sign() * self.eps if self.norm == "linf" else noise * (self.eps / noise.norm())
        return {"attack": delta.cpu(), "control": control}

    def applied(self, tensor: Tensor, images: Images, repeat: int, seed: int) -> Tensor:
        del repeat, seed
        return perturbed(images.x, tensor, (0.0, 1.0))

    def within(self, tensor: Tensor) -> bool:
        size = tensor.abs().max() if self.norm == "linf" else tensor.norm()
        return super().within(tensor) and float(size) <= self.eps * (1 + 1e-5)
