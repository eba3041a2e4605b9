"""A text attack: edits, constraints and a search put together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ..errors import UnsupportedError
from .constraints.base import Constraint
from .passage import Passage
from .search import Importance, Search
from .transformations.base import Transformation

_NEEDS = {
    "sentences": "a sentence encoder",
    "fluency": "a language model",
    "relaxed": "gradients of the model and a tokenizer with whole words that says where its tokens lie",
    "masked": "a masked language model",
    "gradients": "gradients of the model and a tokenizer that says where its tokens lie",
}


@dataclass(frozen=True, slots=True)
class TextAttack:
    """What is tried, what must be kept, and in which order.

    Attributes:
        services: names of what it asks for besides the model under attack.
    """

    transformations: tuple[Transformation, ...]
    constraints: tuple[Constraint, ...] = ()
    search: Search = field(default_factory=Importance)
    services: frozenset[str] = frozenset()

    def slots(self, passage: Passage) -> tuple[int, ...]:
        """The slots that every constraint lets be edited."""
        masks = [constraint.editable(passage) for constraint in self.constraints]
        return tuple(slot for slot in range(len(passage)) if all(mask[slot] for mask in masks))

    def require(self, known: Collection[str]) -> None:
        """Refuses to begin without a service that will be asked for.

        Raises:
            UnsupportedError: says which, and what it is.
        """
        for name in sorted(self.services - set(known)):
            raise UnsupportedError(f"this text attack needs {_NEEDS.get(name, name)}, which was not given")
