"""Low-rank factorisation: each large weight becomes the product of two thin ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError
from .layers import matrix, replaced, share


def factorize(module: nn.Module, keep: float) -> int:
    """Replaces linear and 2-d convolutional layers by two thinner ones that hold ``keep`` of their weights, in place.

    The truncated singular value decomposition is the best approximation of the weight matrix in the Frobenius norm
    (Denton et al., arXiv 1404.0736). A convolution becomes one with ``rank`` filters and a 1x1 convolution. Layers
    too small for a rank of 1, and grouped convolutions, stay.

    Returns:
        How many layers were replaced.

    Raises:
        UnsupportedError: when no layer could be, or ``keep`` is no share.
    """
    share("keep", keep)

    def factors(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.Linear):
            return _linear(layer, keep)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            return _convolution(layer, keep)
        return None

    count = replaced(module, factors)
    if not count:
        raise UnsupportedError(
            f"{type(module).__name__} has no layer that two thinner ones could replace: raise `keep`"
        )
    return count


def rank_for(shape: torch.Size, keep: float) -> int:
    """The rank whose factors hold ``keep`` of the weights of a matrix ``(o, i)``; 0 when not even rank 1 fits."""
    rows, columns = shape
    return int(keep * rows * columns / (rows + columns))


@torch.no_grad()
def _factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``(o, rank)`` and ``(rank, i)`` whose product is nearest to ``weight``."""
    u, s, v = torch.linalg.svd(weight.cpu().double(), full_matrices=False)  # not every device has float64
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight), (root[:, None] * v[:rank]).to(weight)


def _linear(layer: nn.Linear, keep: float) -> nn.Module | None:
    rank = rank_for(layer.weight.shape, keep)
    if rank < 1:
        return None
    outer, inner = _factors(matrix(layer.weight), rank)
    options = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    first = nn.utils.skip_init(nn.Linear, layer.in_features, rank, bias=False, **options)
    second = nn.utils.skip_init(nn.Linear, rank, layer.out_features, bias=layer.bias is not None, **options)
    return _filled(first, second, inner, outer, layer)


def _convolution(layer: nn.Conv2d, keep: float) -> nn.Module | None:
    flat = matrix(layer.weight)
    rank = rank_for(flat.shape, keep)
    if rank < 1:
        return None
    outer, inner = _factors(flat, rank)
    options = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    first = nn.utils.skip_init(
        nn.Conv2d,
        layer.in_channels,
        rank,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        bias=False,
        **options,
    )
    second = nn.utils.skip_init(nn.Conv2d, rank, layer.out_channels, 1, bias=layer.bias is not None, **options)
    return _filled(first, second, inner, outer, layer)


@torch.no_grad()
def _filled(
    first: nn.Module, second: nn.Module, inner: Tensor, outer: Tensor, layer: nn.Linear | nn.Conv2d
) -> nn.Sequential:
    for part, weight in ((first, inner), (second, outer)):
        assert isinstance(part.weight, Tensor)
        part.weight.copy_(weight.view_as(part.weight))
    if layer.bias is not None:
        assert isinstance(second.bias, Tensor)
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).train(layer.training)
