"""From the spec's ``model`` section to what reads texts: a Hugging Face folder, a pipeline, or a factory's pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...attacks.statistics import rate_interval
from ..errors import ModelError, UnsupportedError
from ..samples import Samples
from ..spec import Spec
from ..target import Access, Encode
from .huggingface import adapted, is_huggingface, read_huggingface
from .pipelines import Passed, PipelineEncode, is_pipeline, is_skops, pipeline_access, pipeline_order, read_pipeline
from .python_factory import load_factory
from .tokens import HuggingFaceEncode, as_texts, token_encode
from .weights import load_weights, read_weights

_ALL: frozenset[Access] = frozenset({"gradients", "scores", "labels"})


@dataclass(frozen=True, slots=True)
class TextModel:
    """A text model as loaded.

    Attributes:
        origin: hashes of what it was made from.
        classes: names that the model itself gives its classes, where it does.
    """

    module: nn.Module
    encode: Encode
    origin: tuple[str, ...]
    access: frozenset[Access] = _ALL
    classes: tuple[str, ...] = ()


def read_text_model(spec: Spec, named: tuple[str, ...] | None) -> TextModel:
    """Loads ``source`` or calls ``factory``.

    Args:
        named: names of the classes in order, where they are known.

    Raises:
        ModelError, UnsafeModelError, UnsupportedError, MissingExtraError: as the readers.
    """
    model = spec.model
    if model.factory is not None:
        return _from_factory(spec, named)
    path = spec.resolve(model.source or "")
    if is_huggingface(path):
        module, encode, digest = read_huggingface(path, model.preprocessing.max_length)
        return TextModel(module, encode, (digest,))
    if is_skops(path):
        pipeline, digest = read_pipeline(path)
        return _pipeline(pipeline, named, digest)
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder")
    raise UnsupportedError(
        f"{path}: a text model is a Hugging Face folder with config.json and safetensors, or a scikit-learn pipeline "
        "saved by skops; anything else comes through a factory that returns (module, tokenizer)"
    )


def truncation(encode: Encode, samples: Samples, most: int = 20_000) -> Iterator[str]:
    """A warning that counts the texts that are cut; of very many texts the first are counted."""
    if not isinstance(encode, HuggingFaceEncode):
        return
    n = min(len(samples), most)
    cut = seen = 0
    for raw, part in samples.select(torch.arange(n).numpy()).batches(256):
        cut += encode.too_long(as_texts(raw))
        seen += len(part)
    if cut:
        low, high = rate_interval(cut, seen)
        of = "" if seen == len(samples) else f" looked at ({100 * low:.1f} to {100 * high:.1f} % of all)"
        yield f"{cut} of {seen} texts{of} are longer than {encode.max_length} tokens and are cut"


def _from_factory(spec: Spec, named: tuple[str, ...] | None) -> TextModel:
    model = spec.model
    factory = load_factory(model.factory or "", spec.base_dir, ModelError)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that the file does not hold must be the same in every run
        made = factory(model.arguments)
    if is_pipeline(made):
        return _pipeline(made, named, factory.name, factory.sha256)
    if not isinstance(made, tuple | list) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise ModelError(
            f"{factory.name} returned {type(made).__name__}; for texts it must return (module, tokenizer), or a fitted "
            "scikit-learn classifier of texts"
        )
    body, tokenizer = made
    if not callable(tokenizer):
        raise ModelError(f"{factory.name}: the tokenizer must be callable on a list of texts")
    origin = (factory.name, factory.sha256)
    if model.weights is not None:
        weights = read_weights(spec.resolve(model.weights))
        load_weights(body, weights, model.weights)
        origin = (*origin, weights.sha256)
    if hasattr(tokenizer, "get_vocab") and hasattr(body, "config"):
        module, encode = adapted(body, tokenizer, model.preprocessing.max_length)
        return TextModel(module, encode, origin)
    return TextModel(body, token_encode(tokenizer), origin)


def _pipeline(pipeline: Any, named: tuple[str, ...] | None, *origin: str) -> TextModel:
    order, classes = pipeline_order(pipeline, named)
    return TextModel(Passed(), PipelineEncode(pipeline, order), origin, pipeline_access(pipeline), classes)
