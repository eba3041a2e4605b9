"""Pruning of attention heads: those that can add least are silenced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError
from .layers import share

_PROJECTIONS = ("value", "v_proj", "v_lin")
_HEADS = ("num_attention_heads", "num_heads", "n_heads")


@dataclass(frozen=True, slots=True)
class _Attention:
    """The value projection of one attention layer: ``heads * size`` rows, and its output projection where known."""

    name: str
    heads: int
    weight: Tensor
    bias: Tensor | None
    output: Tensor | None

    def strength(self) -> Tensor:
        """How much each head can pass on ``(heads,)``: the Frobenius norm of values times output."""
        values = self.weight.detach().view(self.heads, -1, self.weight.shape[1])
        if self.output is None:
            return values.flatten(1).norm(dim=1)
        outputs = self.output.detach().view(len(self.output), self.heads, -1)
        return torch.einsum("ohd,hdi->hoi", outputs, values).flatten(1).norm(dim=1)

    def silence(self, head: int) -> None:
        size = len(self.weight) // self.heads
        rows = slice(head * size, (head + 1) * size)
        self.weight[rows] = 0
        if self.bias is not None:
            self.bias[rows] = 0
        if self.output is not None:
            self.output[:, rows] = 0


@torch.no_grad()
def prune_heads(module: nn.Module, amount: float) -> dict[str, tuple[int, ...]]:
    """Silences the ``amount`` of attention heads that can add least, in place; every layer keeps one at least.

    After Michel et al., arXiv 1905.10650, with the norm of a head's value and output weights as its importance, which
    needs no data. Heads are masked: their values are zero, the tensors keep their size.

    Works on ``nn.MultiheadAttention`` and on attention layers written as Hugging Face does (a linear child called
    value, v_proj or v_lin, and a number of heads).

    Returns:
        The silenced heads, by name of the layer.

    Raises:
        UnsupportedError: when there is no attention, or heads share their values.
    """
    share("amount", amount)
    layers = list(_attentions(module))
    if not layers:
        raise UnsupportedError(
            f"{type(module).__name__} has no attention layer that is known here: nn.MultiheadAttention, or one with a "
            "linear child called value, v_proj or v_lin and an attribute num_attention_heads, num_heads or n_heads"
        )
    ranked = sorted(
        (float(value), place, head) for place, layer in enumerate(layers) for head, value in enumerate(layer.strength())
    )
    silenced: dict[str, list[int]] = {layer.name: [] for layer in layers}
    left = round(amount * len(ranked))
    for _, place, head in ranked:
        layer = layers[place]
        if left and len(silenced[layer.name]) < layer.heads - 1:
            layer.silence(head)
            silenced[layer.name].append(head)
            left -= 1
    return {name: tuple(sorted(heads)) for name, heads in silenced.items()}


def _attentions(module: nn.Module) -> Iterator[_Attention]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            yield _of_torch(name, layer)
        else:
            yield from _by_names(name, layer)


def _of_torch(name: str, layer: nn.MultiheadAttention) -> _Attention:
    size = layer.embed_dim
    weight = layer.in_proj_weight[2 * size :] if layer.in_proj_weight is not None else layer.v_proj_weight
    bias = None if layer.in_proj_bias is None else layer.in_proj_bias[2 * size :]
    return _Attention(name, layer.num_heads, weight, bias, layer.out_proj.weight)


def _by_names(name: str, layer: nn.Module) -> Iterator[_Attention]:
    values = [child for one in _PROJECTIONS if isinstance(child := getattr(layer, one, None), nn.Linear)]
    heads = [count for one in _HEADS if isinstance(count := getattr(layer, one, None), int)]
    if not (values and heads):
        return
    shared = getattr(layer, "num_key_value_heads", heads[0])
    if shared != heads[0] or len(values[0].weight) % heads[0]:
        raise UnsupportedError(f"{name}: its {heads[0]} heads share {shared} sets of values: they cannot be told apart")
    yield _Attention(name, heads[0], values[0].weight, values[0].bias, None)
