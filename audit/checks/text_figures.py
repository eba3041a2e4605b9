"""Charts, tables and marked texts of an attack on texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...attacks.statistics import rate_intervals
from ...attacks.text.engine import TextOutcome
from ...attacks.text.passage import Passage
from ...reports.record import Chart, Excerpt, Excerpts, Figure, Line, Mark, MarkedText, Table
from .images import verdict
from .text_inputs import Texts
from .text_measures import TextMeasured

_LONGEST = 20_000
"""Characters of a text in the record; what is longer is cut for show, evidence has the edits in full."""

_COMPARED = 8000
"""Characters of two texts that are compared word by word."""

Groups = Sequence[tuple[str, NDArray[np.bool_]]]


def charts(measured: TextMeasured, classes: tuple[str, ...], attack: str) -> Iterator[Figure]:
    """Success by class and by length, and what the successes cost."""
    by_class: Groups = [(name, measured.y == c) for c, name in enumerate(classes)]
    yield _bars("by_class", f"Success of {attack} by class", "class", by_class, measured)
    yield _bars("by_length", f"Success of {attack} by length", "length", measured.lengths(), measured)
    yield _table([*by_class, *measured.lengths(), ("all", np.ones(len(measured.y), dtype=bool))], measured)


def shown_passages(texts: Texts, outcome: TextOutcome, measured: TextMeasured, most: int) -> Iterator[Figure]:
    """Original and edited text side by side, the successes with the fewest edits first, class by class."""
    rows = chosen(measured, most)
    items = [_excerpt(texts, outcome, row) for row in rows]
    if items:
        yield Excerpts(
            id="examples",
            title="Texts that fool the model",
            caption="What was edited is marked. Characters of no width are shown as their code points.",
            items=tuple(items),
        )


def chosen(measured: TextMeasured, most: int) -> list[int]:
    """Successes to show: classes in turn, few edits first."""
    order = sorted(np.flatnonzero(measured.fallen).tolist(), key=lambda row: (int(measured.changed[row]), row))
    seen: dict[int, int] = {}
    turns = []
    for row in order:
        c = int(measured.y[row])
        seen[c] = seen.get(c, 0) + 1
        turns.append((seen[c], row))
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])[:most]]


def differences(before: str, after: str) -> tuple[tuple[Mark, ...], tuple[Mark, ...]]:
    """Marks of the words and other characters in which two texts differ, on either; none on very long texts."""
    if len(before) + len(after) > _COMPARED:
        return (), ()
    parts = [re.findall(r"\w+|\W", text) for text in (before, after)]
    starts = [[0, *accumulate(map(len, own))] for own in parts]
    marks: tuple[list[Mark], list[Mark]] = ([], [])
    for kind, a, b, c, d in SequenceMatcher(None, *parts, autojunk=False).get_opcodes():
        for side, (first, last) in enumerate(((a, b), (c, d))):
            if kind != "equal" and first < last:
                marks[side].append(Mark(start=starts[side][first], end=starts[side][last]))
    return tuple(marks[0]), tuple(marks[1])


def _excerpt(texts: Texts, outcome: TextOutcome, row: int) -> Excerpt:
    original = Passage.of(texts.text(row))
    edited = original.with_words(outcome.edits[row])
    slots = original.changed(edited)
    classes, samples = texts.target.classes, texts.samples
    before = _marked(f"{classes[int(texts.y[row])]}, {_said(outcome.clean_logits[row], classes)}", original, slots)
    after = _marked(_said(outcome.logits[row], classes), edited, slots)
    return Excerpt(sample_id=str(samples.names[row]), texts=(before, after))


def _said(logits: Tensor, classes: tuple[str, ...]) -> str:
    return f"model: {verdict(logits, classes)}"


def _marked(label: str, passage: Passage, slots: Sequence[int]) -> MarkedText:
    spans = passage.spans()
    text = passage.text[:_LONGEST]
    marks = [Mark(start=spans[slot][0], end=spans[slot][1]) for slot in slots if spans[slot][1] <= len(text)]
    return MarkedText(label=label, text=text, marks=tuple(marks))


def _bars(name: str, title: str, axis: str, groups: Groups, measured: TextMeasured) -> Chart:
    tried = np.array([(measured.tried & mask).sum() for _, mask in groups])
    fallen = np.array([(measured.fallen & mask).sum() for _, mask in groups])
    some = np.maximum(tried, 1)
    low, high = rate_intervals(fallen, some)
    known = tried > 0

    def values(array: NDArray[np.floating]) -> tuple[float | None, ...]:
        return tuple(float(value) if there else None for value, there in zip(array, known, strict=True))

    return Chart(
        id=name,
        title=title,
        caption="Share of the attacked texts that were broken; bars: 95 % intervals.",
        style="bar",
        x_label=axis,
        y_label="success rate",
        y_range=(0, 1),
        categories=tuple(label for label, _ in groups),
        lines=(
            Line(
                name="success rate",
                x=tuple(float(i) for i in range(len(groups))),
                y=values(fallen / some),
                low=values(low),
                high=values(high),
            ),
        ),
    )


def _table(groups: Groups, measured: TextMeasured) -> Table:
    rows = []
    for label, mask in groups:
        tried, fallen = measured.tried & mask, measured.fallen & mask
        rows.append(
            (
                label,
                int(mask.sum()),
                int(tried.sum()),
                int(fallen.sum()),
                float(fallen.sum() / tried.sum()) if tried.any() else None,
                float(measured.changed[fallen].mean()) if fallen.any() else None,
                float(measured.similarity[fallen].mean()) if fallen.any() else None,
                float(measured.queries[tried].mean()) if tried.any() else None,
            )
        )
    return Table(
        id="groups",
        title="By class and by length",
        columns=("group", "texts", "attacked", "broken", "success rate", "words changed", "similarity", "queries"),
        rows=tuple(rows),
    )
