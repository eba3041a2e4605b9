"""Attacks of the toolbox that do not work here, each with the reason and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "geoda_art": "the toolbox calls np.mat, which NumPy 2 removed; use hopskipjump_art or boundary_art",
        "brendel_bethge_art": "the toolbox needs numba for it, which is no dependency of ours; use fmn or fab_t",
        "pixel_art": "its differential evolution left two of four inputs of a linear model unfooled by 6,000 queries "
        "each with three times the pixels that suffice, and its other strategy needs cma, which is no dependency of "
        "ours; use sigma_zero or fmn",
        "spatial_art": "rotations and shifts stay in no norm ball, so that a norm and an eps say nothing about them, "
        "and the toolbox turns the whole batch by one angle",
        "wasserstein_art": "its ball is one of transported mass, which a norm and an eps do not describe; "
        "use pgd, apgd or fmn",
    }
)
"""Name as it would be registered -> reason."""
