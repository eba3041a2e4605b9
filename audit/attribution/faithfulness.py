"""Captum's two metrics: infidelity, and sensitivity of the explanation to small changes of the input."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max as captum_sensitivity_max
from torch import Tensor, nn

from ...attacks.streams import Streams
from .borrow import explaining


class Explain(Protocol):
    """Attributions ``(n, c, h, w)`` of inputs for classes; ``ids`` key whatever is random in them."""

    def __call__(self, x: Tensor, targets: Tensor, ids: Tensor, /) -> Tensor: ...


def infidelity(
    module: nn.Module,
    x: Tensor,
    targets: Tensor,
    attributions: Tensor,
    baseline: Tensor,
    *,
    local: bool = False,
    seed: int = 0,
    ids: Tensor | None = None,
    perturbations: int = 24,
    batch_size: int = 256,
) -> Tensor:
    """Share ``(n,)`` of the effect of removing squares that the attributions do not predict (arXiv 1901.09392).

    Squares of a quarter of the shorter side are replaced by the baseline, ``perturbations`` times. Captum compares
    the drop of the logit with the attribution removed, up to a scale fitted per sample; here the squared error is
    divided by the squared drop: 0 predicts every drop exactly, 1 none of them. NaN when no removal has any effect.
    Every call with the same seed and ids removes the same squares.

    Args:
        module: maps ``(b, c, h, w)`` to logits ``(b, k)``.
        x, attributions, baseline: ``(n, c, h, w)``.
        targets: int64 ``(n,)``.
        local: whether the attributions are gradients, which weigh the change of a value, rather than contributions,
            which are the value's share of the logit.
        seed: of the squares' places.
        ids: int64 ``(n,)`` that key the places; None: positions.
        perturbations: squares per sample.
        batch_size: rows per forward pass, at least ``perturbations``.
    """
    ids = torch.arange(len(x)) if ids is None else ids.cpu()
    together = max(1, batch_size // perturbations)
    parts = []
    with explaining(module):
        for i in range(0, len(x), together):
            part = slice(i, i + together)
            masks = _squares(x[part], Streams.from_seed(seed, ids[part]), perturbations)
            remove = partial(_remove, masks, local)
            error = partial(captum_infidelity, module, remove, x[part], baselines=baseline[part], target=targets[part])
            unexplained = error(attributions[part], n_perturb_samples=perturbations, normalize=True)
            # Attributions of 0 predict no drop at all: their error is the squared drop itself.
            total = error(torch.zeros_like(x[part]), n_perturb_samples=perturbations)
            parts.append((unexplained / torch.where(total > 0, total, torch.nan)).clamp(0, 1))
    return torch.cat(parts) if parts else x.new_zeros(0)


def _remove(masks: Tensor, local: bool, inputs: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """What Captum asks of a perturbation: how attributions are to be weighed, and the inputs without the squares."""
    changed = torch.where(masks, baseline, inputs)
    return (inputs - changed if local else masks.expand_as(inputs).to(inputs)), changed


def _squares(x: Tensor, streams: Streams, perturbations: int) -> Tensor:
    """Bool ``(n * perturbations, 1, h, w)``, true inside a square at a random place."""
    h, w = x.shape[2:]
    side = max(1, min(h, w) // 4)
    top = streams.integers(h - side + 1, (perturbations,)).view(-1, 1, 1, 1).to(x.device)
    left = streams.integers(w - side + 1, (perturbations,)).view(-1, 1, 1, 1).to(x.device)
    rows = torch.arange(h, device=x.device).view(1, 1, h, 1)
    columns = torch.arange(w, device=x.device).view(1, 1, 1, w)
    return (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)


def sensitivity_max(
    explain: Explain,
    x: Tensor,
    targets: Tensor,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    radius: float = 0.02,
    seed: int = 0,
    ids: Tensor | None = None,
    perturbations: int = 4,
) -> Tensor:
    """Largest relative change ``(n,)`` of the attributions under uniform noise of ``radius`` (arXiv 1901.09392).

    0 is perfectly stable; 1 means that the explanation changed as much as it is large. The explained class stays.

    Args:
        explain: the explanation; batches by itself.
        x: ``(n, c, h, w)`` within ``bounds``.
        targets: int64 ``(n,)``.
        bounds: noisy inputs are cut to them.
        radius: of the noise in every value, in input units.
        seed: of the noise.
        ids: int64 ``(n,)`` that key the noise; None: positions.
        perturbations: noisy copies per sample.
    """
    ids = (torch.arange(len(x)) if ids is None else ids.cpu()).to(x.device)
    noise = Streams.from_seed(seed, ids).uniform((perturbations, *x.shape[1:])).flatten(0, 1).to(x)
    copies = ids.repeat_interleave(perturbations) * (perturbations + 1)
    copies += torch.arange(1, perturbations + 1, device=x.device).repeat(len(x))

    def noisy(inputs: Tensor) -> Tensor:
        return (inputs + radius * (2 * noise - 1)).clamp(*bounds)

    def explanation(inputs: Tensor | tuple[Tensor, ...]) -> Any:
        if isinstance(inputs, tuple):  # Captum's first call, with the clean inputs; it wants a tuple back
            return (explain(inputs[0], targets, ids * (perturbations + 1)),)
        # Captum does not repeat the class of a single sample, so all are repeated here.
        return explain(inputs, targets.repeat_interleave(perturbations), copies)

    if len(x) == 0:
        return x.new_zeros(0)
    return captum_sensitivity_max(explanation, x, noisy, n_perturb_samples=perturbations)
