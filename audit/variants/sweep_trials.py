"""Where the trials of a sweep run, and what is kept of them between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ...defenses.selection import Score, Value
from ...reports.record import Evidence
from ..checks.base import Context, ModelFiles
from ..samples import Samples
from ..storage import write_atomic


class HeldOut:
    """The context of one trial: the training data without what is held out, no evidence, scratch files of its own."""

    def __init__(self, context: Context, train: str, part: Samples, label: str) -> None:
        self.seed, self.batch_size = context.seed, context.batch_size
        self.progress, self.variant = context.progress, context.variant
        self._context, self._train, self._part, self._label = context, train, part, label

    def samples(self, source: str) -> Samples:
        """The rest of the training data; other data as they are."""
        return self._part if source == self._train else self._context.samples(source)

    def path(self, source: str) -> Path:
        """Where a file that the spec names lies."""
        return self._context.path(source)

    def scratch(self, name: str) -> Path:
        """A name of the trial's own."""
        return self._context.scratch(f"{self._label}.{name}")

    def model_files(self) -> ModelFiles:
        """What the model was read from."""
        return self._context.model_files()

    def evidence(self, kind: str, tensors: Mapping[str, Tensor], name: str = "") -> Evidence:
        """Nothing is written: a trial proves nothing, the chosen variant is built and audited anew."""
        del tensors
        return Evidence(path=name or kind, sha256="", kind=kind)

    def read_evidence(self, evidence: Evidence) -> dict[str, Tensor]:
        """Refuses: there is none."""
        raise TypeError(f"a trial keeps no evidence ({evidence.path})")


class TrialLog:
    """Finished trials on disk, so that a sweep that was killed does not train them again."""

    def __init__(self, path: Path, key: Any) -> None:
        self.path, self.key = path, json.loads(json.dumps(key, default=str))
        self.scores: dict[str, dict[str, Any]] = {}
        try:
            content = json.loads(path.read_bytes())
            if content["key"] == self.key:
                self.scores = content["trials"]
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def get(self, number: int, parameters: Mapping[str, Value]) -> Score | None:
        kept = self.scores.get(_name(number, parameters))
        return None if kept is None else Score(**kept)

    def put(self, number: int, parameters: Mapping[str, Value], score: Score) -> None:
        self.scores[_name(number, parameters)] = asdict(score)
        write_atomic(self.path, (json.dumps({"key": self.key, "trials": self.scores}) + "\n").encode())


def _name(number: int, parameters: Mapping[str, Value]) -> str:
    return json.dumps([number, dict(parameters)], sort_keys=True)
