"""Which random changes a training makes to its inputs."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from ...defenses.augmentation import Augment, Chain, RandomFlip
from ...defenses.augmentations.colour import RandomColour
from ...defenses.augmentations.crop import RandomCrop
from ...defenses.augmentations.features import GaussianNoise, Swap
from ...defenses.augmentations.randaugment import RandAugment
from ...defenses.augmentations.spatial import RandomSpatial
from ..errors import UnsupportedError
from ..target import Target


class AugmentOptions(BaseModel):
    """Augmentations by name, each with its strength; those left out are off. For images unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: float = Field(default=0.0, ge=0, le=1, description="Probability of a mirror image (not for digits or text).")
    crop: int = Field(default=0, ge=0, description="Pixels by which the image is padded and cropped at random.")
    rotation: float = Field(default=0.0, ge=0, le=180, description="Most degrees, either way.")
    translation: float = Field(default=0.0, ge=0, le=1, description="Largest share of width and height.")
    scale: float = Field(default=0.0, ge=0, lt=1, description="Largest relative change of size.")
    colour: float = Field(default=0.0, ge=0, le=1, description="Strength of changes to light and colour.")
    randaugment: float = Field(default=0.0, ge=0, le=10, description="Magnitude of RandAugment's operations.")
    randaugment_operations: int = Field(default=2, ge=1, description="Its operations per image.")
    noise: float = Field(default=0.0, ge=0, description="Gaussian noise, standard deviation; images and tables.")
    swap: float = Field(default=0.0, ge=0, le=1, description="Share of values taken from another row; tables.")

    def build(self, target: Target) -> Augment | None:
        """The chain of those that are on; None when none is.

        Raises:
            UnsupportedError: for one that does not fit the target's modality.
        """
        steps = tuple(self._steps(target))
        for step in steps:
            fits = getattr(step, "modalities", frozenset())
            if target.modality not in fits:
                raise UnsupportedError(
                    f"augment: {type(step).__name__} is for {' and '.join(sorted(fits))} inputs, not {target.modality}"
                )
        return Chain(steps) if steps else None

    def _steps(self, target: Target) -> Iterator[Augment]:
        if self.flip:
            yield RandomFlip(self.flip)
        if self.crop:
            yield RandomCrop(self.crop)
        if self.rotation or self.translation or self.scale:
            yield RandomSpatial(self.rotation, self.translation, self.scale)
        if self.colour:
            yield RandomColour(self.colour)
        if self.randaugment:
            yield RandAugment(self.randaugment_operations, self.randaugment)
        if self.noise:
            yield GaussianNoise(self.noise, target.bounds if target.modality == "image" else None)
        if self.swap:
            yield Swap(self.swap)
