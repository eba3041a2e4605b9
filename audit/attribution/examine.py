"""Everything that is scored about one attribution method on one set of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...attacks.streams import Streams
from .baselines import BaselineName, make_baseline
from .curves import area_under, perturbation_curve, pixel_ranks
from .faithfulness import infidelity, sensitivity_max
from .methods import Method, attribute, control_grid, relevance
from .metrics import border_share, completeness_gap, rank_correlation, sparseness, top_overlap
from .scene import VIEWS, Scene, View


@dataclass(frozen=True, slots=True)
class Settings:
    """How attributions are made and scored; see :func:`~.methods.attribute` and the check's fields."""

    baseline: BaselineName = "zero"
    bounds: tuple[float, float] = (0.0, 1.0)
    steps: int = 32
    layer: str | None = None
    top: float = 0.1
    radius: float = 0.02
    curve_steps: int = 16
    seed: int = 0
    rows: int = 256


@dataclass(frozen=True, slots=True)
class Examined:
    """One method, or its random control, on a scene: maps ``(n, h, w)`` by view, scores ``(n,)``, curves ``(n, s)``."""

    maps: Mapping[View, Tensor]
    scores: Mapping[str, Tensor]
    deletion: Tensor
    insertion: Tensor


def examine(scene: Scene, method: Method, settings: Settings) -> Examined:
    """Maps, curves and scores of ``method``; NaN where a score is undefined for a sample."""
    explain = partial(
        attribute,
        method,
        baseline=settings.baseline,
        bounds=settings.bounds,
        steps=settings.steps,
        layer=settings.layer,
        seed=settings.seed,
        internal_batch_size=settings.rows,
    )
    return _examined(scene, explain, settings, local=method == "saliency", complete=method == "integrated_gradients")


def examine_control(scene: Scene, grid: tuple[int, int], settings: Settings) -> Examined:
    """The same for noise that is as coarse as the method's maps; drawn anew for every input."""
    explain = partial(attribute, "random", grid=grid, internal_batch_size=settings.rows)
    return _examined(scene, _Redrawn(explain, settings.seed), settings)


def grid_of(scene: Scene, method: Method, settings: Settings) -> tuple[int, int]:
    """The grid for :func:`examine_control` that matches ``method``."""
    return control_grid(method, scene.module, scene.x["clean"], layer=settings.layer)


class _Redrawn:
    """Random attributions from a fresh seed at every call: the control must not agree with itself."""

    def __init__(self, explain: partial[Tensor], seed: int) -> None:
        self._explain = explain
        self._seed = seed

    def __call__(self, module: nn.Module, x: Tensor, targets: Tensor, *, ids: Tensor) -> Tensor:
        self._seed += 1
        return self._explain(module, x, targets, ids=ids, seed=self._seed)


def _examined(
    scene: Scene,
    explain: partial[Tensor] | _Redrawn,
    settings: Settings,
    *,
    local: bool = False,
    complete: bool = False,
) -> Examined:
    x, classes, ids = scene.x["clean"], scene.classes["clean"], scene.ids
    full = {view: explain(scene.module, scene.x[view], scene.classes[view], ids=ids) for view in VIEWS}
    maps: dict[View, Tensor] = {view: relevance(full[view]) for view in VIEWS}
    ranks = {view: map_ranks(maps[view], ids, settings.seed) for view in VIEWS}
    nothing = make_baseline(x, settings.baseline, settings.bounds)
    deletion, insertion = curves(scene.module, x, classes, ranks["clean"], settings)
    scores = {
        "deletion_auc": area_under(deletion),
        "insertion_auc": area_under(insertion),
        "infidelity": infidelity(
            scene.module, x, classes, full["clean"], nothing,
            local=local, seed=settings.seed, ids=ids, batch_size=settings.rows,
        ),
        "sensitivity_max": sensitivity_max(
            lambda inputs, targets, keys: explain(scene.module, inputs, targets, ids=keys),
            x, classes, bounds=settings.bounds, radius=settings.radius, seed=settings.seed, ids=ids,
        ),
        "top_overlap_attacked": top_overlap(ranks["clean"], ranks["attacked"], settings.top),
        "top_overlap_noise": top_overlap(ranks["clean"], ranks["noisy"], settings.top),
        "rank_correlation_attacked": rank_correlation(maps["clean"], maps["attacked"]),
        "randomized_similarity": rank_correlation(
            maps["clean"], relevance(explain(scene.twin, x, classes, ids=ids))
        ),
        "sparseness": sparseness(maps["clean"]),
        "border_share": border_share(maps["clean"]),
    }  # fmt: skip
    for name in ("top_overlap_attacked", "top_overlap_noise", "rank_correlation_attacked"):
        scores[name] = torch.where(scene.moved, scores[name], torch.nan)
    if complete:
        scores["completeness_gap"] = completeness_gap(
            scene.module, x, classes, nothing, full["clean"], batch_size=settings.rows
        )
    return Examined(
        maps={view: maps[view].cpu() for view in VIEWS},
        scores={name: values.float().cpu() for name, values in scores.items()},
        deletion=deletion.cpu(),
        insertion=insertion.cpu(),
    )


def map_ranks(pixels: Tensor, ids: Tensor, seed: int) -> Tensor:
    """Ranks ``(n, h, w)`` of the pixels of maps, ties broken by the sample's own random stream."""
    return pixel_ranks(pixels, Streams.from_seed(seed, ids.to(pixels.device)).fork(1))


def curves(module: nn.Module, x: Tensor, classes: Tensor, ranks: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Deletion and insertion curves ``(n, curve_steps + 1)``."""
    nothing = make_baseline(x, settings.baseline, settings.bounds)
    curve = partial(perturbation_curve, module, x, classes, ranks, nothing)
    steps, rows = settings.curve_steps, settings.rows
    return curve("deletion", steps=steps, batch_size=rows), curve("insertion", steps=steps, batch_size=rows)
