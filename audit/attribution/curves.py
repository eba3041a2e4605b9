"""Deletion and insertion: what happens to the prediction when pixels go, or come, in the order of their attribution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ...attacks.streams import Streams
from .borrow import explaining


def pixel_ranks(pixels: Tensor, streams: Streams) -> Tensor:
    """Place ``(n, h, w)`` of each pixel when sorted by falling relevance ``(n, h, w)``, 0 first, ties at random.

    Ties matter: Grad-CAM gives whole regions the value 0, and breaking them from the top left would not be fair.
    """
    flat = pixels.flatten(1)
    shuffled = streams.uniform((flat.shape[1],)).to(flat.device).argsort(1)
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(stable=True, dim=1, descending=True))
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(pixels)


def perturbation_curve(
    module: nn.Module,
    x: Tensor,
    targets: Tensor,
    ranks: Tensor,
    baseline: Tensor,
    mode: Literal["deletion", "insertion"],
    *,
    steps: int = 16,
    batch_size: int = 256,
) -> Tensor:
    """Probability ``(n, steps + 1)`` of the class after 0, 1/steps, ... all of the pixels (arXiv 1806.07421).

    ``deletion`` replaces the pixels of ``x`` by those of ``baseline``, most relevant first; ``insertion`` goes the
    other way. All steps of all samples go through the module together, ``batch_size`` rows at a time.

    Args:
        module: maps ``(b, c, h, w)`` to logits ``(b, k)``.
        x, baseline: ``(n, c, h, w)``.
        targets: int64 ``(n,)``.
        ranks: ``(n, h, w)``, from :func:`pixel_ranks`.
        mode: ``deletion`` or ``insertion``.
        steps: parts into which the pixels are divided.
        batch_size: rows per forward pass.
    """
    area = ranks[0].numel() if len(ranks) else 0
    counts = (torch.arange(steps + 1, device=x.device) * area / steps).round()
    old, new = (x, baseline) if mode == "deletion" else (baseline, x)
    rows = torch.arange(len(x) * (steps + 1), device=x.device)
    values = []
    with explaining(module), torch.no_grad():
        for part in rows.split(batch_size):
            sample = part // (steps + 1)
            replaced = ranks[sample] < counts[part % (steps + 1)].view(-1, 1, 1)
            logits = module(torch.where(replaced[:, None], new[sample], old[sample]))
            values.append(logits.float().softmax(1).gather(1, targets[sample, None])[:, 0])
    return torch.cat(values).view(len(x), steps + 1) if values else x.new_zeros(0, steps + 1)


def area_under(curve: Tensor) -> Tensor:
    """Area ``(n,)`` under curves ``(n, steps + 1)`` over the share of pixels, 0..1 (trapezoidal rule)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)
