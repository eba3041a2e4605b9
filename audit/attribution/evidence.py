"""The tensors behind the attribution check's claims, and how they are checked again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...attacks.threat import Threat
from ...reports.record import Metric
from .curves import area_under
from .examine import Examined, Settings, curves, map_ranks
from .methods import LABELS, Method, attribute, relevance
from .scene import Scene, View, predictions
from .scores import metrics_of

_MAP_ERROR = 0.02  # relative: machines and batches of other sizes add up in another order
_SCORE_ERROR = 0.01

Verified = tuple[str, bool, str]
"""What was checked again, whether it holds, and a detail."""


def map_tensors(
    scene: Scene, examined: Mapping[Method, tuple[Examined, Examined]], shown: Sequence[int]
) -> dict[str, Tensor]:
    """Inputs, predictions and maps of the shown samples: ``x``, ``x_adv``, ``METHOD.clean``, ``METHOD.attacked``."""
    at = torch.as_tensor(list(shown), dtype=torch.int64)
    tensors = {
        "x": scene.x["clean"].cpu()[at],
        "x_adv": scene.x["attacked"].cpu()[at],
        "ids": scene.ids.cpu()[at],
        "predicted": scene.classes["clean"].cpu()[at],
        "predicted_adv": scene.classes["attacked"].cpu()[at],
    }
    for method, (own, _) in examined.items():
        tensors[f"{method}.clean"] = own.maps["clean"][at]
        tensors[f"{method}.attacked"] = own.maps["attacked"][at]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def score_tensors(scene: Scene, examined: Mapping[Method, tuple[Examined, Examined]]) -> dict[str, Tensor]:
    """Scores of every sample, ``METHOD.score`` and ``METHOD_random.score``, with ids and predictions."""
    tensors = {
        "ids": scene.ids.cpu(),
        "predicted": scene.classes["clean"].cpu(),
        "predicted_adv": scene.classes["attacked"].cpu(),
    }
    for method, (own, control) in examined.items():
        tensors |= {f"{method}.{name}": values.clone() for name, values in own.scores.items()}
        tensors |= {f"{method}_random.{name}": values.clone() for name, values in control.scores.items()}
    return tensors


def verified_inputs(
    module: nn.Module, x: Tensor, maps: Mapping[str, Tensor], threat: Threat, rows: int
) -> Iterator[Verified]:
    """Whether the stored inputs are those of the audit (``x``), inside ball and bounds, and predicted as recorded."""
    same = maps["x"].shape == x.shape and torch.allclose(maps["x"], x.cpu(), atol=1e-6)
    yield "the explained inputs are audited samples", same, f"{len(x)} samples"
    adv = maps["x_adv"]
    low, high = threat.bounds
    far = threat.distance(adv, maps["x"]).max().item() if len(adv) else 0.0
    inside = far <= threat.eps * 1.0001 + 1e-6 and bool(((adv >= low) & (adv <= high)).all())
    yield "attacked inputs lie in ball and bounds", inside, f"largest distance {far:.6g}"
    for inputs, key in ((maps["x"], "predicted"), (adv, "predicted_adv")):
        now = predictions(module, inputs.to(x.device), rows)[0].cpu() if len(inputs) else maps[key]
        agree = int((now == maps[key]).sum())
        yield f"the model predicts as recorded ({key})", agree == len(now), f"{agree} of {len(now)}"


def verified_maps(
    module: nn.Module, maps: Mapping[str, Tensor], method: Method, settings: Settings, device: torch.device
) -> Verified:
    """Whether the stored maps come out again on the reloaded model."""
    views: tuple[tuple[View, str, str], ...] = (("clean", "x", "predicted"), ("attacked", "x_adv", "predicted_adv"))
    worst = 0.0
    for view, inputs, classes in views:
        again = relevance(
            attribute(
                method,
                module,
                maps[inputs].to(device),
                maps[classes].to(device),
                baseline=settings.baseline,
                bounds=settings.bounds,
                steps=settings.steps,
                layer=settings.layer,
                seed=settings.seed,
                ids=maps["ids"],
                internal_batch_size=settings.rows,
            )
        ).cpu()
        stored = maps[f"{method}.{view}"]
        if again.shape != stored.shape:
            return f"{LABELS[method]} maps are reproduced", False, "other shape"
        worst = max(worst, _relative_error(again, stored))
    return f"{LABELS[method]} maps are reproduced", worst <= _MAP_ERROR, f"largest relative error {worst:.2g}"


def verified_curves(
    module: nn.Module,
    maps: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    method: Method,
    settings: Settings,
    device: torch.device,
) -> Verified:
    """Whether deletion and insertion AUC of the stored maps come out as recorded."""
    what = f"{LABELS[method]} deletion and insertion are reproduced"
    if len(maps["ids"]) == 0:
        return what, True, "no samples stored"
    place = {int(number): i for i, number in enumerate(scores["ids"])}
    if not all(int(number) in place for number in maps["ids"]):
        return what, False, "a stored map has no scores"
    at = torch.tensor([place[int(number)] for number in maps["ids"]])
    ranks = map_ranks(maps[f"{method}.clean"], maps["ids"], settings.seed).to(device)
    found = curves(module, maps["x"].to(device), maps["predicted"].to(device), ranks, settings)
    worst = max(
        float((area_under(curve).cpu() - scores[f"{method}.{name}"][at]).abs().max())
        for curve, name in zip(found, ("deletion_auc", "insertion_auc"), strict=True)
    )
    return what, worst <= _SCORE_ERROR, f"largest difference {worst:.2g}"


def verified_metrics(
    metrics: Sequence[Metric], scores: Mapping[str, Tensor], methods: Sequence[Method], seed: int
) -> Iterator[Verified]:
    """Whether every metric follows from the recorded per-sample scores."""
    again = {
        metric.name: metric
        for method in methods
        for metric in metrics_of(method, _under(f"{method}.", scores), _under(f"{method}_random.", scores), seed)
    }
    for metric in metrics:
        other = again.get(metric.name)
        agree = other is not None and all(
            (a is None) == (b is None) and (a is None or b is None or abs(a - b) <= 1e-6)
            for a, b in (
                (metric.value, other.value),
                (metric.ci_low, other.ci_low),
                (metric.ci_high, other.ci_high),
            )
        )
        yield (
            f"{metric.name} follows from the recorded scores",
            agree,
            "" if metric.value is None else f"{metric.value:.6g}",
        )


def _under(prefix: str, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in scores.items() if name.startswith(prefix)}


def _relative_error(again: Tensor, stored: Tensor) -> float:
    """Largest distance of two maps ``(n, h, w)`` relative to the stored one's size."""
    if len(stored) == 0:
        return 0.0
    size = stored.flatten(1).norm(dim=1).clamp_min(1e-12)
    return float(((again - stored).flatten(1).norm(dim=1) / size).max())
