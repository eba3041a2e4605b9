"""Gradients of the loss with respect to the words of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedError
from .passage import Passage
from .scheduler import in_batches
from .victim import Victim

Offsets = Callable[[Sequence[Any], int], list[list[tuple[int, int]]] | None]


def token_embedding(module: nn.Module) -> nn.Embedding:
    """The layer that turns token ids into vectors: named by the module, or its largest embedding.

    Raises:
        UnsupportedError: when there is none.
    """
    for part in module.modules():
        named = getattr(part, "get_input_embeddings", None)
        layer = named() if callable(named) else None
        if isinstance(layer, nn.Embedding):
            return layer
    layers = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    if not layers:
        raise UnsupportedError("the model has no embedding layer, so there are no gradients of its words")
    return max(layers, key=lambda layer: layer.num_embeddings)


@contextmanager
def embedded(layer: nn.Embedding, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Lets ``change`` replace the vectors that an embedding layer gives, for the block."""
    handle = layer.register_forward_hook(lambda *call: change(call[2]))
    try:
        yield
    finally:
        handle.remove()


def embedding_gradients(
    module: nn.Module, layer: nn.Embedding, x: Tensor, goal: Tensor, *, targeted: bool = False
) -> tuple[Tensor, Tensor]:
    """Gradient of the loss that an attacker raises, and the embedded tokens: both ``(n, t, d)``.

    Args:
        x: encoded texts as the module takes them.
        goal: int64 ``(n,)``, the label to leave, or the class to reach.
    """
    taken: list[Tensor] = []

    def leaf(output: Tensor) -> Tensor:
        taken.append(output.detach().requires_grad_())
        return taken[-1]

    with embedded(layer, leaf), torch.enable_grad():
        loss = functional.cross_entropy(module(x).float(), goal, reduction="sum")
        (gradient,) = torch.autograd.grad(-loss if targeted else loss, taken[:1])
    return gradient, taken[0].detach()


@dataclass(slots=True)
class Gradients:
    """A service: for a passage, the gradient at each of its slots, float32 ``(slots, d)``.

    A word of several tokens has the sum of their gradients; words beyond the model's length have zero.

    Attributes:
        victim: composes raw inputs and knows the goals.
        encode: raw texts to what the module takes.
        offsets: where tokens lie in the text.
    """

    module: nn.Module
    victim: Victim
    encode: Callable[[Any], Tensor]
    offsets: Offsets
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __call__(self, rows: Sequence[int], items: Sequence[Any]) -> list[Tensor]:
        layer = token_embedding(self.module)
        texts = [passage.text for passage in items]
        answers: list[Tensor] = [torch.empty(0)] * len(items)
        for batch in in_batches([len(text) for text in texts], self.victim.batch_size):
            raws = [self.victim.compose(rows[i], texts[i]) for i in batch]
            goal = torch.tensor([self.victim.goals[rows[i]] for i in batch], device=self.device)
            gradient, _ = embedding_gradients(
                self.module, layer, self.encode(raws).to(self.device), goal, targeted=self.victim.targeted
            )
            spans = self.offsets(raws, self.victim.column)
            if spans is None:
                raise UnsupportedError("the tokenizer does not say where its tokens lie in the text (offsets)")
            for place, i in enumerate(batch):
                answers[i] = _by_slot(items[i], gradient[place].float().cpu(), spans[place])
        return answers


def _by_slot(passage: Passage, gradient: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    owner = slot_of_tokens(passage, spans)
    result = torch.zeros(len(passage), gradient.shape[1])
    tokens = [token for token, slot in enumerate(owner) if slot >= 0]
    return result.index_add_(0, torch.tensor([owner[t] for t in tokens], dtype=torch.int64), gradient[tokens])


def slot_of_tokens(passage: Passage, spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each token the slot of the passage that it belongs to, -1 for none."""
    slots = passage.spans()
    owner, slot = [], 0
    for start, end in spans:
        if end <= start:
            owner.append(-1)
            continue
        while slot < len(slots) and slots[slot][1] <= start:
            slot += 1
        owner.append(slot if slot < len(slots) and slots[slot][0] < end else -1)
    return owner
