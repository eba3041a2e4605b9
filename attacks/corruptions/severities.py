"""How strong each corruption is at severities 1 to 5, for images of any size."""

from __future__ import annotations

import math

from ..errors import UnsupportedError

Ladder = tuple[tuple[float, ...], ...]
"""One tuple of parameters for each severity."""

_SMALL, _LARGE = 32, 224

PUBLISHED: dict[str, tuple[Ladder, Ladder]] = {
    # Standard deviation.
    "gaussian_noise": (
        ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    ),
    # Photons at full brightness.
    "shot_noise": (((500,), (250,), (100,), (75,), (50,)), ((60,), (25,), (12,), (5,), (3,))),
    # Share of values replaced.
    "impulse_noise": (
        ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    ),
    # Radius of the disk in pixels, standard deviation of the blur that smooths its rim.
    "defocus_blur": (
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    # Half the length of the streak in pixels, standard deviation of its weights.
    "motion_blur": (
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    # Largest magnification.
    "zoom_blur": (((1.05,), (1.10,), (1.15,), (1.20,), (1.25,)), ((1.10,), (1.15,), (1.20,), (1.24,), (1.30,))),
    # Flakes: mean, deviation, size, threshold; half streak, deviation in pixels; share of the image kept.
    "snow": (
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    # Thickness, and how fast the fog's finer structure fades.
    "fog": (
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    # Added to the value of the HSV model.
    "brightness": (((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)), ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    # Share of the contrast kept.
    "contrast": (((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)), ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    # Share of the resolution kept.
    "pixelate": (((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)), ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    # Quality setting of libjpeg.
    "jpeg_compression": (((80,), (65,), (58,), (50,), (40,)), ((25,), (18,), (15,), (10,), (7,))),
}
"""Values of the CIFAR-10-C (32 pixels) and ImageNet-C (224 pixels) generators of arXiv 1903.12261."""

OWN: dict[str, tuple[Ladder, Ladder]] = {
    # Standard deviation of the blur before and after, largest displacement, both in pixels.
    "glass_blur": (
        ((0.3, 0.6), (0.3, 0.8), (0.3, 1.0), (0.35, 1.25), (0.4, 1.5)),
        ((0.7, 1.5), (0.9, 2.5), (1.0, 3.5), (1.1, 5), (1.5, 7)),
    ),
    # Share of the image kept, share of the frost added.
    "frost": (
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.45), (0.75, 0.55)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.75), (0.6, 0.8)),
    ),
    # As shares of the side: root mean square displacement, its correlation length, jitter of the affine map.
    "elastic_transform": (
        ((0.008, 0.05, 0.02), (0.014, 0.05, 0.03), (0.02, 0.05, 0.04), (0.028, 0.05, 0.05), (0.036, 0.05, 0.06)),
        ((0.004, 0.02, 0.02), (0.008, 0.02, 0.03), (0.012, 0.02, 0.04), (0.016, 0.02, 0.05), (0.02, 0.02, 0.06)),
    ),
}
"""Where the published values do not fit our construction, or do not grow with severity in effect."""

_PIXELS = {"defocus_blur": (0, 1), "motion_blur": (0, 1), "glass_blur": (0, 1), "snow": (2, 4, 5)}
"""Which parameters are lengths in pixels."""


def parameters(name: str, severity: int, side: int) -> tuple[float, ...]:
    """The parameters of a corruption for images whose shorter side has ``side`` pixels.

    Between 32 and 224 pixels the two tables are interpolated linearly in the logarithm of the side. Smaller images
    take the values for 32. On larger ones lengths grow with the side, and all else stays as for 224.

    Raises:
        UnsupportedError: for an unknown name, or a severity outside 1..5.
    """
    tables = PUBLISHED | OWN
    if name not in tables:
        raise UnsupportedError(f"corruption is {name!r}: choose one of {', '.join(tables)}")
    if severity not in range(1, 6):
        raise UnsupportedError(f"severity is {severity!r}: choose 1 to 5")
    small, large = (ladder[severity - 1] for ladder in tables[name])
    place = min(max(math.log(side / _SMALL) / math.log(_LARGE / _SMALL), 0.0), 1.0)
    stretch = max(1.0, side / _LARGE)
    mixed = (a + place * (b - a) for a, b in zip(small, large, strict=True))
    lengths = _PIXELS.get(name, ())
    return tuple(value * stretch if index in lengths else value for index, value in enumerate(mixed))
