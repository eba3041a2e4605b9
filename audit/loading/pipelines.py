"""Scikit-learn pipelines from texts to classes, as black boxes: loaded through skops, never unpickled."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MissingExtraError, ModelError, UnsafeModelError
from ..target import Access
from .files import read_bytes, sha256
from .tokens import as_texts


@dataclass(frozen=True, slots=True)
class PipelineEncode:
    """The whole pipeline: texts to logits ``(n, k)``, to which :class:`Passed` adds nothing.

    Attributes:
        pipeline: with ``predict_proba``, ``decision_function`` or at least ``predict``, and ``classes_``.
        order: for each class of the target, its column in the pipeline's output.
    """

    pipeline: Any = field(repr=False)
    order: tuple[int, ...]

    def __call__(self, raw: Any, /) -> Tensor:
        texts, k = as_texts(raw), len(self.order)
        if not texts:
            return torch.zeros(0, k)
        if hasattr(self.pipeline, "predict_proba"):
            scores = np.log(np.clip(np.asarray(self.pipeline.predict_proba(texts)), 1e-12, None))
        elif hasattr(self.pipeline, "decision_function"):
            scores = np.asarray(self.pipeline.decision_function(texts), dtype=np.float64)
            scores = np.stack([-scores, scores], 1) / 2 if scores.ndim == 1 else scores
        else:
            classes = list(self.pipeline.classes_)
            hit = np.eye(k)[[classes.index(label) for label in self.pipeline.predict(texts)]]
            scores = np.log(np.clip(hit, 1e-12, None))
        return torch.from_numpy(scores[:, list(self.order)].astype(np.float32))


class Passed(nn.Module):
    """Logits in, logits out: all the work is done before."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def is_pipeline(candidate: Any) -> bool:
    """Whether an object predicts classes the way scikit-learn does."""
    return hasattr(candidate, "predict") and hasattr(candidate, "classes_")


def pipeline_access(pipeline: Any) -> frozenset[Access]:
    """What it tells: scores, or labels alone."""
    scored = hasattr(pipeline, "predict_proba") or hasattr(pipeline, "decision_function")
    return frozenset({"scores", "labels"}) if scored else frozenset({"labels"})


def pipeline_order(pipeline: Any, named: tuple[str, ...] | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The columns of its output in the order of the classes, and their names.

    Raises:
        ModelError: when its classes are neither the names given nor numbers 0..k-1.
    """
    own = [str(label) for label in pipeline.classes_]
    if own == [str(i) for i in range(len(own))]:
        return tuple(range(len(own))), named or ()
    if named is None:
        return tuple(range(len(own))), tuple(own)
    if sorted(named) != sorted(own):
        raise ModelError(f"the pipeline's classes are {', '.join(own)}, but these are named: {', '.join(named)}")
    return tuple(own.index(name) for name in named), named


def read_pipeline(path: Path) -> tuple[Any, str]:
    """A pipeline saved with ``skops.io.dump``, and the hash of its file.

    Raises:
        MissingExtraError: without skops.
        UnsafeModelError: when it holds types that skops does not know to be safe.
        ModelError: when it cannot be read, or is no classifier.
    """
    try:
        import skops.io as skops
    except ImportError as error:
        raise MissingExtraError("scikit-learn pipelines", "text") from error
    content = read_bytes(path, ModelError)
    try:
        strangers = skops.get_untrusted_types(data=content)
        if strangers:
            raise UnsafeModelError(
                f"{path}: holds types not known to be safe ({', '.join(sorted(strangers)[:5])}); nothing of it "
                "was loaded. Rebuild the pipeline from scikit-learn's own parts, or give a factory"
            )
        pipeline = skops.loads(content, trusted=[])
    except UnsafeModelError:
        raise
    except Exception as error:  # skops raises many kinds on damaged files
        raise ModelError(f"{path}: cannot be read by skops ({type(error).__name__}: {error})") from error
    if not is_pipeline(pipeline):
        raise ModelError(f"{path}: holds {type(pipeline).__name__}, which is no fitted classifier")
    return pipeline, sha256(content)


def is_skops(path: Path) -> bool:
    """Whether a file is a skops archive: a ZIP with ``schema.json`` and nothing that runs."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        content = file.read(4)
    if content != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            return "schema.json" in archive.namelist()
    except zipfile.BadZipFile:
        return False
