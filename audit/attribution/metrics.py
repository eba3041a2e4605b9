"""Scores of attribution maps, one value per sample."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...attacks.streams import Streams
from .borrow import explaining


def sparseness(pixels: Tensor) -> Tensor:
    """Gini index ``(n,)`` of the absolute relevance ``(n, h, w)``: 0 even, near 1 on few pixels (arXiv 1810.06583).

    A map that is zero everywhere counts as even.
    """
    size = pixels.abs().flatten(1).sort(1).values
    d = size.shape[1]
    weights = (d - torch.arange(1, d + 1, device=size.device) + 0.5) / d
    total = size.sum(1)
    return torch.where(total > 0, 1 - 2 * (size * weights).sum(1) / total.clamp_min(1e-30), 0.0)


def border_share(pixels: Tensor, width: float = 0.1) -> Tensor:
    """Share ``(n,)`` of the absolute relevance ``(n, h, w)`` in the outer frame; NaN for a map of zeros."""
    size = pixels.abs()
    total = size.sum((1, 2))
    return size[:, border_mask(pixels, width)].sum(1) / torch.where(total > 0, total, torch.nan)


def border_mask(pixels: Tensor, width: float = 0.1) -> Tensor:
    """Bool ``(h, w)``, true in the frame whose width is this share of the side (one pixel at least)."""
    h, w = pixels.shape[1:]
    rows, columns = max(1, round(h * width)), max(1, round(w * width))
    mask = torch.ones(h, w, dtype=torch.bool, device=pixels.device)
    mask[rows : h - rows, columns : w - columns] = False
    return mask


def top_overlap(ranks: Tensor, others: Tensor, share: float = 0.1) -> Tensor:
    """Intersection over union ``(n,)`` of the first ``share`` of pixels in two rankings ``(n, h, w)``."""
    k = max(1, round(share * ranks[0].numel())) if len(ranks) else 1
    ours, theirs = (ranks < k).flatten(1), (others < k).flatten(1)
    return (ours & theirs).sum(1) / (ours | theirs).sum(1)


def rank_correlation(pixels: Tensor, others: Tensor) -> Tensor:
    """Spearman correlation ``(n,)`` of two maps ``(n, h, w)``, ties at their mean rank; 0 when one is constant."""
    a, b = _mean_ranks(pixels.flatten(1)), _mean_ranks(others.flatten(1))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    size = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(size > 0, (a * b).sum(1) / size.clamp_min(1e-30), 0.0).float()


def _mean_ranks(values: Tensor) -> Tensor:
    ordered = values.sort(1).values.contiguous()
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to - 1).double() / 2


def completeness_gap(
    module: nn.Module,
    x: Tensor,
    targets: Tensor,
    baseline: Tensor,
    attributions: Tensor,
    *,
    batch_size: int = 256,
) -> Tensor:
    """How far ``(n,)`` the attributions' sum is from ``f(x) - f(baseline)``, in logits (arXiv 1703.01365, axiom 1)."""
    change = logit_change(module, x, targets, baseline, batch_size=batch_size)
    return (attributions.flatten(1).sum(1) - change).abs()


def logit_change(module: nn.Module, x: Tensor, targets: Tensor, baseline: Tensor, *, batch_size: int = 256) -> Tensor:
    """``f(x) - f(baseline)`` ``(n,)`` for the logit of each sample's class."""
    with explaining(module), torch.no_grad():
        pairs = zip(x.split(batch_size), baseline.split(batch_size), strict=True)
        change = torch.cat([(module(own) - module(other)).float() for own, other in pairs])
    return change.gather(1, targets[:, None])[:, 0]


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose weights know nothing: each parameter drawn anew with its own mean and spread (arXiv 1810.03292).

    Buffers, such as running means of batch norm, stay. The copy is in eval mode.
    """
    twin = copy.deepcopy(module).eval()
    with torch.no_grad():
        for number, parameter in enumerate(twin.parameters()):
            streams = Streams.from_seed(seed, torch.tensor([number]))
            noise = streams.normal(tuple(parameter.shape) or (1,)).view(parameter.shape).to(parameter)
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs().sum()
            parameter.copy_(parameter.mean() + spread * noise)
    return twin
