"""Whether a patch, put anywhere on any image, makes the model err."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...attacks.streams import Streams
from ...attacks.universal.patch import AdversarialPatch, Patch, Shape, apply
from .images import Images
from .universal_base import UniversalCheck


class PatchCheck(UniversalCheck):
    """One patch for all images, put at random places, angles and scales; fitted on half of the samples."""

    name: ClassVar[str] = "patch"
    title: ClassVar[str] = "Adversarial patch"
    question: ClassVar[str] = "Does a patch, put anywhere on an image, make the model err?"
    references: ClassVar[tuple[str, ...]] = ("Brown et al., Adversarial Patch, arXiv 1712.09665",)
    metrics: ClassVar[Mapping[str, str]] = UniversalCheck.metrics
    cost: ClassVar[str] = "steps x batch_size forward and backward passes, then 1 + 2 x placements per sample"
    words: ClassVar[str] = "a patch"

    size: float = Field(default=0.3, gt=0, lt=1, description="Side of the patch as a share of the image's side.")
    rotation: float = Field(default=20.0, ge=0, le=180, description="Largest angle in degrees, either way.")
    scales: tuple[float, float] = Field(default=(0.8, 1.2), description="Smallest and largest magnification.")
    shape: Shape = Field(default="circle", description="square or circle.")
    placements: int = Field(default=5, ge=1, description="Random placements per held-out image.")

    @model_validator(mode="after")
    def _fits(self) -> PatchCheck:
        self.build()
        return self

    def build(self) -> AdversarialPatch:
        """The configured attack.

        Raises:
            ValueError: when the patch does not fit the image.
        """
        return AdversarialPatch(
            size=self.size,
            steps=self.steps,
            batch_size=self.batch_size or 64,
            rotation=self.rotation,
            scales=self.scales,
            shape=self.shape,
        )

    @property
    def repeats(self) -> int:
        return self.placements

    def fit(self, images: Images, goal: Tensor, seed: int) -> dict[str, Tensor]:
        device, targeted = images.target.device, self.target is not None
        generator = torch.Generator().manual_seed(seed)
        # The module itself is frozen for the fit, since Images.model hides it from the attack.
        with images.attacked():
            x, y = images.x.to(device), goal.to(device)
            patch = self.build().fit(images.model, x, y, targeted=targeted, generator=generator)
        control = Streams.from_seed(seed, torch.tensor([0])).fork(12).uniform(patch.pattern.shape)[0]
        return {"attack": patch.pattern.cpu(), "control": control}

    def applied(self, tensor: Tensor, images: Images, repeat: int, seed: int) -> Tensor:
        blank = self.build().blank(images.x[:1])
        patch = Patch(tensor, blank.mask, blank.size, blank.rotation, blank.scales)
        return apply(patch, images.x, images.streams(seed).fork(20 + repeat))

    def within(self, tensor: Tensor) -> bool:
        return super().within(tensor) and 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
