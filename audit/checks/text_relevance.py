"""Relevance of the words of texts, by Captum's methods on tokens and on words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import KernelShap, LayerGradientXActivation, LayerIntegratedGradients, Lime, Saliency
from captum.attr._core.lime import get_exp_kernel_similarity_function
from numpy.typing import NDArray
from torch import Tensor, nn

from ...attacks.text.gradients import embedded, slot_of_tokens, token_embedding
from ...attacks.text.passage import Passage
from ...attacks.text.victim import scores
from ..errors import UnsupportedError
from ..loading.tokens import HuggingFaceEncode, TokenEncode
from .text_inputs import Texts

Method = Literal["integrated_gradients", "input_x_gradient", "saliency", "occlusion", "kernel_shap", "lime"]
METHODS: tuple[Method, ...] = get_args(Method)
WHITE_BOX = frozenset({"integrated_gradients", "input_x_gradient", "saliency"})
CONTROL = "random"

Words = list[NDArray[np.float64]]
"""For each text, relevance of each of its words: what speaks for the class is above zero."""


def relevance(
    name: str, texts: Texts, rows: Sequence[int], passages: Sequence[Passage], classes: Tensor, steps: int, seed: int
) -> Words:
    """Relevance of each slot of versions of some samples, for the classes given.

    Args:
        name: a method, or ``random``: the control.
        rows: whose version each passage is.
        classes: int64 ``(len(rows),)``.
        steps: points of Integrated Gradients; least number of draws of KernelShap and LIME.

    Raises:
        UnsupportedError: for gradients of a model that gives none by token.
    """
    if name in WHITE_BOX:
        return _by_gradient(name, texts, rows, passages, classes, steps)
    ids = texts.samples.ids
    return [
        np.random.default_rng([seed, int(ids[row])]).random(len(passage))
        if name == CONTROL
        else _by_masks(name, texts, row, passage, c, steps, seed + int(ids[row]))
        for row, passage, c in zip(rows, passages, classes.tolist(), strict=True)
    ]


def without(passage: Passage, kept: Sequence[bool]) -> str:
    """The text without the words not kept, blanks folded."""
    words = tuple(word if keep else "" for word, keep in zip(passage.words, kept, strict=True))
    return " ".join(Passage(words, passage.gaps).text.split()) if not all(kept) else passage.text


def _by_masks(
    name: str, texts: Texts, row: int, passage: Passage, c: int, steps: int, seed: int
) -> NDArray[np.float64]:
    """Relevance from versions of the text without some of its words."""
    n = len(passage)
    if n == 0:
        return np.zeros(0)

    def margin(masks: Tensor) -> Tensor:
        """Log odds ``(m,)`` of the class for masks ``(m, n)``."""
        versions = [texts.with_text(row, without(passage, mask)) for mask in masks.bool().tolist()]
        return scores(texts.logits(versions), torch.full((len(versions),), c), targeted=True).float()

    whole = torch.ones(1, n)
    if name == "occlusion":
        return (margin(whole) - margin(1 - torch.eye(n))).double().numpy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**31)
        explained = _lime(margin) if name == "lime" else KernelShap(margin)
        draws = max(2 * n, steps)
        values = explained.attribute(
            whole, baselines=torch.zeros(1, n), n_samples=draws, perturbations_per_eval=min(64, draws)
        )
    return values[0].double().numpy()


def _lime(margin: Callable[[Tensor], Tensor]) -> Lime:
    """LIME on text as its authors weigh versions: by cosine, with a kernel of 0.25.

    Their ridge of 1 is made for thousands of draws; with a few dozen it takes a fifth off the weights and hands it to
    other words. Here it only keeps the regression solvable.
    """
    return Lime(
        margin,
        interpretable_model=SkLearnRidge(alpha=1e-4),
        similarity_func=get_exp_kernel_similarity_function("cosine", kernel_width=0.25),
    )


def _by_gradient(
    name: str, texts: Texts, rows: Sequence[int], passages: Sequence[Passage], classes: Tensor, steps: int
) -> Words:
    """Captum's methods on the token embedding, one text at a time, tokens joined to words."""
    target = texts.target
    encode, layer = target.encode, token_embedding(target.module)
    if not isinstance(encode, HuggingFaceEncode | TokenEncode):
        raise UnsupportedError(f"{name} needs a tokenizer; explain this model by occlusion, kernel_shap or lime")
    found = []
    for row, passage, c in zip(rows, passages, classes.to(target.device), strict=True):
        raw = texts.with_text(row, passage.text)
        spans = encode.offsets([raw], texts.column)
        if spans is None:
            raise UnsupportedError(f"{name} needs a tokenizer with offsets; explain this model by occlusion")
        with torch.enable_grad():
            tokens = _of_tokens(name, target.module, layer, encode([raw]).to(target.device), c[None], steps)
        values = np.zeros(len(passage))
        for value, slot in zip(tokens, slot_of_tokens(passage, spans[0]), strict=False):  # padding has no span
            if slot >= 0:
                values[slot] += value
        found.append(values)
    return found


def _of_tokens(name: str, module: nn.Module, layer: nn.Embedding, x: Tensor, c: Tensor, steps: int) -> list[float]:
    """Relevance of each token of one encoded text."""

    def margin(encoded: Tensor) -> Tensor:
        logits = module(encoded).float()
        own = logits.gather(1, c.expand(len(logits))[:, None])[:, 0]
        return own - logits.scatter(1, c.expand(len(logits))[:, None], float("-inf")).logsumexp(1)

    found: Any
    if name == "integrated_gradients":
        # The baseline are padding ids: embeddings of nothing, at the places of the tokens.
        explained = LayerIntegratedGradients(margin, layer)
        found = explained.attribute(x, baselines=_blank(x), n_steps=steps, internal_batch_size=64)
    elif name == "input_x_gradient":
        found = LayerGradientXActivation(margin, layer).attribute(x)
    else:
        found = Saliency(_from_vectors(margin, layer, x)).attribute(_vectors(margin, layer, x))
    return found[0].sum(-1).detach().double().cpu().tolist()


def _vectors(margin: Callable[[Tensor], Tensor], layer: nn.Embedding, x: Tensor) -> Tensor:
    """What the layer makes of the tokens: ``(1, t, d)``."""
    taken: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        taken.append(output.detach().clone())
        return output

    with embedded(layer, keep), torch.no_grad():
        margin(x)
    return taken[0].requires_grad_()


def _from_vectors(margin: Callable[[Tensor], Tensor], layer: nn.Embedding, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The margin as a function of the tokens' vectors."""

    def of_vectors(vectors: Tensor) -> Tensor:
        with embedded(layer, lambda _: vectors):
            return margin(x)

    return of_vectors


def _blank(x: Tensor) -> Tensor:
    """The same encoding with zeros for token ids; mask and types stay."""
    blank = x.clone()
    (blank[:, 0] if x.dim() == 3 else blank).zero_()
    return blank
