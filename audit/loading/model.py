"""From the spec's ``model`` section to a target."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...reports.record import ModelInfo
from ..errors import DataError, ModelError
from ..samples import Samples
from ..spec import ModelSpec, Preprocessing, Spec
from ..target import Encode, Target
from .data import digits, load_samples
from .encode import ImageEncode, TableEncode
from .normalized import Normalized
from .probe import probe
from .python_factory import Factory, load_factory
from .text_model import TextModel, read_text_model, truncation
from .torchscript import read_torchscript
from .weights import load_weights, read_weights

NO_WEIGHTS = "model.weights is not given: the model was audited as its factory built it"
TRUSTED = "the model was loaded from TorchScript, which can run code, because the spec says trust: true"


def load(spec: Spec, device: torch.device) -> tuple[Target, Samples]:
    """The model and the data of a spec, fitted to each other: same classes, labels within them.

    Raises:
        ModelError, DataError, UnsafeModelError, UnsupportedError: as :func:`load_target` and ``load_samples``.
    """
    samples = load_samples(spec)
    target = load_target(spec, device, samples)
    return target, replace(samples, classes=target.classes)


def load_target(spec: Spec, device: torch.device, samples: Samples) -> Target:
    """The model of a spec on ``device``, in eval mode, probed on a few of ``samples``.

    Raises:
        ModelError: when it cannot be built, its weights do not fit, or its output is not logits ``(n, k)``.
        UnsafeModelError: when the weights' file could run code.
        UnsupportedError: for a ``source`` that is not supported yet.
        DataError: when the labels exceed the model's classes.
    """
    if spec.model.modality == "text":
        return _text_target(spec, device, samples)
    body, identity, warnings = _body(spec)
    module = _normalized(body, spec.model.preprocessing).to(device).eval()
    encode = _encode(spec)
    probed = probe(module, encode, samples, device)
    classes = _classes(spec, samples, probed.k)
    return Target(
        module=probed.module,
        encode=encode,
        classes=classes,
        modality=spec.model.modality,
        bounds=_bounds(spec, samples),
        device=device,
        sha256=_identity(spec, identity, classes),
        warnings=(*warnings, *probed.warnings),
    )


def _text_target(spec: Spec, device: torch.device, samples: Samples) -> Target:
    found: TextModel = read_text_model(spec, spec.model.classes or spec.data.classes)
    module = found.module.to(device).eval()
    probed = probe(module, found.encode, samples, device)
    classes = _classes(spec, replace(samples, classes=found.classes or samples.classes), probed.k)
    return Target(
        module=probed.module,
        encode=found.encode,
        classes=classes,
        modality="text",
        bounds=(0.0, 1.0),
        device=device,
        sha256=_identity(spec, [*found.origin, _state_hash(module)], classes),
        access=found.access,
        warnings=(*probed.warnings, *truncation(found.encode, samples)),
    )


def describe_target(target: Target, spec: ModelSpec) -> ModelInfo:
    """What the record says of the model."""
    body = inner(target.module)
    return ModelInfo(
        source=spec.factory or spec.source or "",
        sha256=target.sha256,
        weights=spec.weights or "",
        modality=target.modality,
        access=tuple(sorted(target.access)),
        parameters=sum(parameter.numel() for parameter in body.parameters()),
        architecture=type(getattr(target.encode, "pipeline", body)).__qualname__,
        trusted=spec.trust,
    )


def inner(module: nn.Module) -> nn.Module:
    """The user's module inside the wrappers that loading put around it."""
    while type(module).__module__.startswith(__name__.rpartition(".")[0]):
        body = getattr(module, "body", None)
        if not isinstance(body, nn.Module):
            break
        module = body
    return module


def _body(spec: Spec) -> tuple[nn.Module, list[str], tuple[str, ...]]:
    """The user's module with its weights, hashes of what it was made from, and warnings."""
    if spec.model.source is not None:
        script = read_torchscript(spec.resolve(spec.model.source), spec.model.trust)
        return script.module, [script.sha256], (TRUSTED,)
    factory = load_factory(spec.model.factory or "", spec.base_dir, ModelError)
    body = _build(factory, spec.model)
    if spec.model.weights is None:
        return body, [factory.name, factory.sha256, _state_hash(body)], (NO_WEIGHTS,)
    weights = read_weights(spec.resolve(spec.model.weights))
    load_weights(body, weights, spec.model.weights)
    return body, [factory.name, factory.sha256, weights.sha256], ()


def _build(factory: Factory, spec: ModelSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that the file does not hold must be the same in every run
        module = factory(spec.arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{factory.name} returned {type(module).__name__}; it must return a torch.nn.Module")
    return module


def _normalized(body: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    return Normalized(body, preprocessing.mean, preprocessing.std) if preprocessing.mean else body


def _encode(spec: Spec) -> Encode:
    if spec.model.modality == "tabular":
        return TableEncode()
    size = spec.model.preprocessing.size
    return ImageEncode(spec.data.layout, (size, size) if isinstance(size, int) else size)


def _bounds(spec: Spec, samples: Samples) -> tuple[float, float]:
    """Images live in 0..1; a table's values are kept within the range that its data spans."""
    if spec.model.modality == "image":
        return (0.0, 1.0)
    ranges = [(float(rows.min()), float(rows.max())) for rows, _ in samples.batches(4096)]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if low == high:
        raise DataError(f"every value of the table is {low}: nothing to audit")
    return (low, high)


def _classes(spec: Spec, samples: Samples, k: int) -> tuple[str, ...]:
    named = spec.model.classes or spec.data.classes
    known = named or samples.classes
    top = int(np.max(samples.labels))
    if top >= k:
        raise DataError(f"{samples.source}: a label is {top}, but the model has {k} classes (0..{k - 1})")
    if len(known) == k:
        return known
    if named is None and known == digits(len(known)):
        return digits(k)
    raise ModelError(f"the model has {k} outputs, but {len(known)} classes are named: {', '.join(known[:8])}")


def _identity(spec: Spec, origin: list[str], classes: tuple[str, ...]) -> str:
    """Hash of everything that the target's answers depend on."""
    facts: dict[str, Any] = {
        "origin": origin,
        "arguments": spec.model.arguments,
        "preprocessing": spec.model.preprocessing.model_dump(mode="json"),
        "modality": spec.model.modality,
        "layout": spec.data.layout,
        "classes": classes,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


def _state_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        digest.update(key.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
