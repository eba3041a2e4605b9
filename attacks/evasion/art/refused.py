"""Attacks of the toolbox that do not work here, each with the reason and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "geoda_art": "the toolbox calls np.mat, which NumPy 2 removed; use hopskipjump or boundary_art",
        "brendel_bethge_art": "the toolbox needs numba for it, which is no dependency of ours; use fmn or fab_t",
        "pixel_art": "its differential evolution left two of four inputs of a linear model unfooled by 6,000 queries "
        "each with three times the pixels that suffice, and its other strategy needs cma, which is no dependency of "
        "ours; use sigma_zero or fmn",
        "spatial_art": "rotations and shifts stay in no norm ball, so that a norm and an eps say nothing about them, "
        "and the toolbox turns the whole batch by one angle",
        "threshold_art": "its differential evolution fooled none of four inputs of a linear model within a linf radius "
        "of half the range, and its other strategy needs cma, which is no dependency of ours; use square",
        "auto_conjugate_gradient_art": "it fooled none of four inputs of a linear model within twice the distance that "
        "suffices, and in our measurements 19 % of a network's inputs where apgd fooled 88 %; use apgd",
        "composite_art": "the toolbox needs kornia for it, which is no dependency of ours; the shift check covers "
        "rotation, colour and blur",
        "graphite_art": "the toolbox needs cv2 for it, which is no dependency of ours, and it makes stickers, which no "
        "norm ball holds; the patch check covers those",
        "lowprofool_art": "it needs the importance of each feature of a table from the user; use apgd",
        "feature_adversaries_art": "it moves an input's inner features towards those of a second input, which an "
        "attack on a label does not have; use pgd with a target",
        "shadow_art": "it takes one input at a time and bounds its change by no norm; use the shift check",
        "wasserstein_art": "its ball is one of transported mass, which a norm and an eps do not describe; "
        "use pgd, apgd or fmn",
    }
)
"""Name as it would be registered -> reason."""
