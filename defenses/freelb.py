"""Adversarial training in the space of embeddings, where small changes of a text have a meaning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..attacks.errors import UnsupportedError
from ..attacks.text.gradients import embedded, token_embedding
from .objectives import BatchLoss, Moment
from .random_state import random_state, restore_random_state


@dataclass(frozen=True, slots=True)
class FreeLB:
    """https://arxiv.org/abs/1909.11764. The mean loss over a path of growing perturbations of the word embeddings.

    Each text is perturbed as a whole: ``eps`` bounds the l2 norm over all its tokens. The path starts at a random
    point and takes ``steps - 1`` normalised gradient steps; weights learn from every point of it, not only the last.
    Dropout is the same along the path. Padding is left alone: where the attention mask is 0, or at tokens ``pad``.

    Args:
        eps: largest l2 norm of a text's perturbation; embeddings of BERT-like models have about 1 to 1.5 a token.
        step_size: l2 length of a step.
        steps: points of the path, each a pass forward and back.
        start: l2 norm of the first point, at most; no more than ``eps`` is used.
        class_weights: one weight per class.
        pad: id of padding in inputs without an attention mask; the embedding's ``padding_idx`` when None.
    """

    eps: float
    step_size: float
    steps: int
    start: float = 0.1
    class_weights: tuple[float, ...] | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or min(self.eps, self.step_size, self.start) < 0:
            raise UnsupportedError("FreeLB needs at least one step, and eps, step_size and start of 0 or more")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
        losses, correct = self.path(module, x, y, moment)
        return BatchLoss(torch.stack(losses).mean(), correct)

    def path(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[list[Tensor], Tensor]:
        """The loss at each point of the path, and how many texts are classified correctly at its end.

        Args:
            x: encoded texts ``(n, t)``, or ``(n, 3, t)`` with ids, attention mask and types.
            y: int64 ``(n,)``.
        """
        layer = token_embedding(module)
        mask = self._mask(x, layer)
        shape = (*mask.shape, layer.embedding_dim)
        drawn = 2 * torch.rand(shape, generator=moment.generator) - 1
        delta = drawn.to(x.device) * mask[..., None]
        sizes = mask.sum(1).clamp_min(1) * layer.embedding_dim
        delta = delta * (min(self.start, self.eps) / sizes.sqrt())[:, None, None]
        same = random_state(moment.generator, x.device)
        losses, correct = [], torch.zeros((), device=x.device)
        for step in range(self.steps):
            restore_random_state(same, moment.generator, x.device)
            leaf = delta.detach().requires_grad_()
            with embedded(layer, lambda out, leaf=leaf: out + leaf.to(out.dtype)):
                logits = module(x)
            losses.append(self._loss(logits, y))
            correct = (logits.argmax(1) == y).sum()
            if step + 1 < self.steps:
                each = cross_entropy(logits, y, reduction="sum")  # without the weights: each text has its own path
                (gradient,) = torch.autograd.grad(each, leaf, retain_graph=True)
                delta = self._moved(delta, gradient * mask[..., None])
        return losses, correct

    def _moved(self, delta: Tensor, gradient: Tensor) -> Tensor:
        delta = delta + self.step_size * gradient / _norms(gradient).clamp_min(1e-12)
        return delta * (self.eps / _norms(delta).clamp_min(1e-12)).clamp_max(1)

    def _mask(self, x: Tensor, layer: nn.Embedding) -> Tensor:
        """Which tokens are of the text, float32 ``(n, t)``."""
        if x.dim() == 3:
            return x[:, 1].float()
        pad = layer.padding_idx if self.pad is None else self.pad
        return torch.ones_like(x, dtype=torch.float32) if pad is None else (x != pad).float()

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return cross_entropy(logits, y, weight=weight)


def _norms(values: Tensor) -> Tensor:
    """l2 norms ``(n, 1, 1)`` of values ``(n, t, d)``."""
    return values.flatten(1).norm(dim=1)[:, None, None]
