"""Whether predictions survive changes that do not change what an input means (CheckList, arXiv 2005.04118)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..reports.writing import plural
from .errors import DataError, UnsupportedError
from .measured import Measured, share
from .registry import unknown

Change = Callable[[Any], Any]
"""One input to its changed form, or to a list of changed forms."""

_WORST = 5
_NEIGHBOURS = {
    "a": "qs", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "w", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
"""Keys beside each key."""


def invariance(
    predict: Callable[[Sequence[Any]], Any],
    inputs: Sequence[Any],
    change: Change | str | Iterable[Change | str],
    *,
    batch_size: int = 64,
) -> Measured:
    """Share of ``inputs`` whose prediction stays the same under every change.

    Args:
        predict: inputs to labels, to logits or probabilities ``(n, k)``, or to a list of ``{"label": …}``.
        inputs: texts, rows, images: whatever ``predict`` takes.
        change: a function that keeps the meaning, the name of a text change (see :data:`TEXT_CHANGES`), or several.

    Raises:
        DataError: without inputs, or when ``predict`` gives another number of answers.
        UnsupportedError: for an unknown name.
    """
    if not len(inputs):
        raise DataError("there are no inputs to change")
    changes = [change] if isinstance(change, str) or callable(change) else list(change)
    forms: list[tuple[int, str, Any]] = [
        (place, _name(one), form)
        for place, given in enumerate(inputs)
        for one in changes
        for form in _forms(_function(one), given)
    ]
    before = _labels(predict, list(inputs), batch_size)
    after = _labels(predict, [form for _, _, form in forms], batch_size)
    broken: dict[int, str] = {}
    for (place, name, form), label in zip(forms, after, strict=True):
        if label != before[place]:
            told = f"sample {place}: {before[place]} becomes {label} under {name}"
            broken.setdefault(place, f"{told}: {_short(inputs[place])} -> {_short(form)}")
    metric = share("invariant_share", len(inputs) - len(broken), len(inputs), higher_is_better=True)
    names = ", ".join(dict.fromkeys(_name(one) for one in changes))
    return Measured(metric, f"{plural(len(forms), 'change')} by {names}", tuple(broken.values())[:_WORST])


def typos(text: str) -> list[str]:
    """Two letters swapped, one doubled, one left out, one hit beside: four forms, the same for the same text."""
    places = [i for i in range(1, len(text) - 2) if text[i].isalpha() and text[i + 1].isalpha()]
    if not places:
        return [text]
    rng = random.Random(text)  # noqa: S311 (no secret: the same text must give the same typos)
    i, j, k, m = (rng.choice(places) for _ in range(4))
    near = _NEIGHBOURS.get(text[m].lower(), text[m])
    return [
        text[:i] + text[i + 1] + text[i] + text[i + 2 :],
        text[:j] + text[j] + text[j:],
        text[:k] + text[k + 1 :],
        text[:m] + rng.choice(near) + text[m + 1 :],
    ]


def case(text: str) -> list[str]:
    """All small, all capital, first letter capital."""
    return [text.lower(), text.upper(), text.capitalize()]


def whitespace(text: str) -> list[str]:
    """Blanks around, doubled, and a line break at the end."""
    return [f"  {text}  ", text.replace(" ", "  "), f"{text}\n"]


def punctuation(text: str) -> list[str]:
    """The last stop left out or added, and an exclamation mark."""
    bare = text.rstrip(".!?")
    return [bare, f"{bare}.", f"{bare}!"]


TEXT_CHANGES: dict[str, Callable[[str], list[str]]] = {
    "typos": typos,
    "case": case,
    "whitespace": whitespace,
    "punctuation": punctuation,
}
"""Changes of a text that leave its meaning, by name."""


def _function(change: Change | str) -> Change:
    if not isinstance(change, str):
        return change
    if change not in TEXT_CHANGES:
        raise UnsupportedError(unknown("change of a text", change, TEXT_CHANGES))
    return TEXT_CHANGES[change]


def _forms(change: Change, given: Any) -> list[Any]:
    found = change(given)
    return found if isinstance(found, list) else [found]


def _name(change: Change | str) -> str:
    return change if isinstance(change, str) else getattr(change, "__name__", type(change).__name__)


def _labels(predict: Callable[[Sequence[Any]], Any], inputs: list[Any], batch_size: int) -> list[Any]:
    labels: list[Any] = []
    for start in range(0, len(inputs), batch_size):
        part = inputs[start : start + batch_size]
        answers = _read(predict(part))
        if len(answers) != len(part):
            raise DataError(f"the model gave {len(answers)} answers to {len(part)} inputs")
        labels += answers
    return labels


def _read(answers: Any) -> list[Any]:
    """Labels from what classifiers give: logits, labels, or the dictionaries of a pipeline."""
    if hasattr(answers, "detach"):
        answers = answers.detach().cpu().numpy()
    if isinstance(answers, np.ndarray):
        return (answers.argmax(-1) if answers.ndim == 2 else answers).tolist()
    listed = list(answers)
    if listed and isinstance(listed[0], dict):
        return [answer["label"] for answer in listed]
    if listed and isinstance(listed[0], list | tuple | np.ndarray):
        return [int(np.argmax(answer)) for answer in listed]
    return listed


def _short(value: Any, longest: int = 60) -> str:
    text = repr(value) if isinstance(value, str) else type(value).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
