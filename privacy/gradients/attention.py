"""``nn.MultiheadAttention`` by its own parameters, but with projections that the tape can see.

The native forward pass uses its weights inside one function, where no layer's input and output could be caught. This
one computes the same from the same parameters, so that structure and state dict stay as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .rules import widened
from .shares import Formed, Share, Stacked, matrix_share, wanted

if TYPE_CHECKING:
    from .tape import Tape


def attend(
    tape: Tape,
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The forward pass of ``layer``, with the arguments and results of ``nn.MultiheadAttention``."""
    del is_causal  # a hint about attn_mask, which is given with it
    if not layer.batch_first:
        same = key is query and value is key
        query = query.transpose(0, 1)
        key, value = (query, query) if same else (key.transpose(0, 1), value.transpose(0, 1))
    q, k, v = (_heads(part, layer.num_heads) for part in _projections(tape, layer, query, key, value))
    mask = _mask(attn_mask, key_padding_mask, q, layer.num_heads)
    dropout = layer.dropout if layer.training else 0.0
    weights = None
    if need_weights:
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        weights = (scores if mask is None else scores + mask).softmax(3)
        mixed = functional.dropout(weights, dropout, training=True) @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = layer.out_proj(mixed.transpose(1, 2).flatten(2))
    return (out if layer.batch_first else out.transpose(0, 1)), weights


def _projections(
    tape: Tape, layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    bias = layer.in_proj_bias
    if layer.in_proj_weight is not None and query is key and key is value:
        out = functional.linear(query, layer.in_proj_weight.detach(), None if bias is None else bias.detach())

        check = tape.unchanged(layer, query)

        def then(back: Tensor) -> None:
            check()
            weight, shift = _linear(tape, layer, query, back)
            _add(tape, layer, {"in_proj_weight": weight, "in_proj_bias": shift})

        q, k, v = tape.watch(out, then).chunk(3, -1)
        return q, k, v
    return _apart(tape, layer, (query, key, value))


def _apart(
    tape: Tape, layer: nn.MultiheadAttention, inputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Projections of different inputs; the shares of the joint parameters are put together when all three are in."""
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    if layer.in_proj_weight is not None:
        matrices = layer.in_proj_weight.detach().chunk(3)
    else:
        matrices = tuple(getattr(layer, name).detach() for name in names)
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.detach().chunk(3)
    found: dict[int, tuple[Share, Share]] = {}
    check = tape.unchanged(layer, *inputs)

    def after(place: int, back: Tensor) -> None:
        check()
        found[place] = _linear(tape, layer, inputs[place], back)
        if len(found) < 3:
            return
        shares: dict[str, Share] = {"in_proj_bias": Stacked(tuple(found[i][1] for i in range(3)))}
        if layer.in_proj_weight is not None:
            shares["in_proj_weight"] = Stacked(tuple(found[i][0] for i in range(3)))
        else:
            shares |= {name: found[i][0] for i, name in enumerate(names)}
        _add(tape, layer, shares)

    q, k, v = (
        tape.watch(functional.linear(x, matrix, bias), lambda back, i=i: after(i, back))
        for i, (x, matrix, bias) in enumerate(zip(inputs, matrices, biases, strict=True))
    )
    return q, k, v


def _linear(tape: Tape, layer: nn.Module, seen: Tensor, back: Tensor) -> tuple[Share, Share]:
    back = tape.checked(layer, back).reshape(tape.records, -1, back.shape[-1])
    seen = widened(seen.detach()).reshape(tape.records, -1, seen.shape[-1])
    return matrix_share(seen, back), Formed(back.sum(1))


def _add(tape: Tape, layer: nn.Module, shares: dict[str, Share]) -> None:
    tape.add(layer, {name: share for name, share in shares.items() if wanted(layer, name)})


def _heads(part: Tensor, heads: int) -> Tensor:
    """``(n, t, d)`` to ``(n, heads, t, d / heads)``."""
    return part.unflatten(2, (heads, -1)).transpose(1, 2)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, heads: int) -> Tensor | None:
    """Both masks as one to add to the scores, broadcast to ``(n, heads, t, s)``."""
    total: Tensor | None = None
    if attn_mask is not None:
        total = _additive(attn_mask, q.dtype)
        total = total.view(-1, heads, *total.shape[1:]) if total.ndim == 3 else total
    if padding is not None:
        padding = _additive(padding, q.dtype)[:, None, None, :]
        total = padding if total is None else total + padding
    return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -math.inf)
