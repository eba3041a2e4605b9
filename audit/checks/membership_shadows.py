"""The shadow models of a membership check: where they begin, and which of their layers are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ...defenses.lora import LoRA
from ...defenses.scope import training_scope
from ...privacy.shadow.fresh import continued, fresh
from ...privacy.shadow.training import ShadowConfig, Shadows, train_shadows
from ..errors import UnsupportedError
from ..loading.model import inner
from ..loading.weights import load_weights, read_weights
from ..recipe import BASE, RANDOM, Recipe
from ..target import Target
from ..variants.training import scope_text
from .base import Context


@contextmanager
def trained_shadows(
    module: nn.Module,
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    config: ShadowConfig,
    on_samples: Callable[[float], None] | None = None,
) -> Iterator[Shadows]:
    """Shadow models of ``module`` (:func:`origin`), each trained as the recipe says; to be asked inside only, where
    adapters are in place."""
    with ExitStack() as scopes:

        def begin(module: nn.Module, seed: int) -> nn.Module:
            own = fresh(module, seed) if recipe.start == RANDOM else continued(module, seed, new_head=recipe.new_head)
            scope = replace(recipe.scope, seed=seed) if isinstance(recipe.scope, LoRA) else recipe.scope
            scopes.enter_context(training_scope(own, scope))
            return own

        yield train_shadows(module, x, y, config, begin=begin, on_samples=on_samples)


def origin(target: Target, start: str, context: Context) -> nn.Module:
    """The architecture of the shadow models, with the weights that they start from.

    Raises:
        ModelError: when the weights of the file do not fit.
        UnsupportedError: when there is no base to start from.
    """
    if start == RANDOM:
        return target.module
    if start == BASE and target.base is None:
        raise UnsupportedError(
            "membership: start is base, but this is the model as given, made from no other: name the file of the "
            "weights that it was fine-tuned from, or leave start out"
        )
    module = copy.deepcopy((target.base or target).module)
    if start != BASE:
        load_weights(inner(module), read_weights(context.path(start)), start)
    return target.wrap(module)


def caveat(recipe: Recipe, known: Recipe | None) -> str:
    """What the shadow models begin from, and what that hides.

    Args:
        known: how the target was trained, where that is recorded.
    """
    if recipe.start == RANDOM:
        return f"The shadow models start from random weights{_advice(known)}."
    name = "the model that this variant was made from" if recipe.start == BASE else recipe.start
    head = ", each with a head of its own" if recipe.new_head else ""
    part = "" if recipe.scope == "all" else f", and {scope_text(recipe.scope)} are trained"
    return (
        f"The shadow models start from {name}{head}{part}. What those weights already gave away of these records is in "
        "every shadow model, and is not found: only what the last training added."
    )


def _advice(known: Recipe | None) -> str:
    if known is None:
        return ": where the model was fine-tuned, name those in `start`"
    if known.start == BASE:
        return ": if the model that this variant was made from had not seen these records, `start: base` finds more"
    return ""


def settled(recipe: Recipe) -> dict[str, Any]:
    """The recipe in the words of the check's options."""
    scope = recipe.scope
    told = {"start": recipe.start, "new_head": recipe.new_head}
    if isinstance(scope, LoRA):
        return {**told, "scope": "lora", "lora_rank": scope.rank, "lora_alpha": scope.alpha}
    return {**told, "scope": scope}
