"""The text of a first spec, as ``auditorch init`` writes it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import SpecError
from .spec import with_home
from .yaml_lines import parse_yaml

_PLAIN = re.compile(r"[\w./-]+(\.py:\w+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What ``init`` is told; paths as seen from the working directory."""

    model: str
    data: str
    weights: str | None = None
    train: str | None = None
    modality: str = "image"


def first_spec(wishes: Wishes, folder: Path) -> str:
    """A commented spec for ``folder``, its paths relative to that.

    Raises:
        SpecError: when a file is not there, or ``model`` is no ``file.py:callable`` or ``module:callable``.
    """
    place, colon, attribute = wishes.model.rpartition(":")
    if not colon or not place:
        raise SpecError(f"--model {wishes.model!r}: name the function that builds the model, such as model.py:build")
    factory = f"{_relative(place, folder)}:{attribute}" if place.endswith(".py") else wishes.model
    data = _relative(wishes.data, folder)
    train = _relative(wishes.train, folder) if wishes.train else None
    weights = _relative(wishes.weights, folder) if wishes.weights else None
    lines = [
        "# What auditorch examines, and what must hold. Run it with: auditorch run audit.yaml",
        "version: 1",
        f"name: {_text(Path(data).stem or 'audit')}",
        "",
        "model:",
        f"  factory: {_text(factory)}   # a function that returns the torch.nn.Module",
        f"  weights: {_text(weights)}" if weights else "  # weights: model.safetensors   # loaded into the module",
        f"  modality: {wishes.modality}",
        *(_IMAGE_HINTS if wishes.modality == "image" else ()),
        "data:",
        f"  source: {_text(data)}",
        "  limit: 500   # a random subset; raise it for narrower intervals",
        "",
        "checks:   # `auditorch list checks`; `auditorch show evasion` tells its options",
        "  - performance   # is it accurate, are its probabilities honest?",
        "  - model_file   # can the files that it is loaded from be trusted?",
        *(_IMAGE_CHECKS if wishes.modality == "image" else ()),
        f"  - membership: {{train: {_text(train)}}}   # does it give away what it was trained on?"
        if train
        else "  # - membership: {train: train.npz}   # does it give away what it was trained on?",
        "",
        *_variants(train),
        "# Each gate passes when the metric's 95 % interval lies wholly on the good side (`auditorch list metrics`).",
        "# gates:",
        "#   - performance.accuracy >= 0.80",
        *(["#   - linf.robust_accuracy >= 40%"] if wishes.modality == "image" else []),
        "seed: 0",
    ]
    return "\n".join(lines) + "\n"


_IMAGE_HINTS = ("  # preprocessing: {mean: [0.5], std: [0.5]}   # if the model does not normalise by itself",)
_IMAGE_CHECKS = (
    "  - evasion: {id: linf, norm: linf, eps: 8/255}   # can small changes of every pixel fool it?",
    "  - attribution: {method: integrated_gradients}   # why does it decide so?",
)


def _variants(train: str | None) -> list[str]:
    if train is None:
        return []
    return [
        "# Every check also runs on each of these, retrained from the model above (`auditorch list defenses`).",
        "# variants:",
        f"#   - adversarial_training: {{train: {_text(train)}, norm: linf, eps: 8/255, epochs: 5}}",
        f"#   - dp_sgd: {{train: {_text(train)}, epsilon: 8}}",
        "",
    ]


def _relative(path: str, folder: Path) -> str:
    place = with_home(path)
    if not place.exists():
        raise SpecError(f"{path}: no such file or folder")
    try:
        return Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return place.resolve().as_posix()


def _text(value: str) -> str:
    """Plain where YAML reads it as it stands, quoted otherwise."""
    if _PLAIN.fullmatch(value) and parse_yaml(value).value == value:
        return value
    return json.dumps(value)
