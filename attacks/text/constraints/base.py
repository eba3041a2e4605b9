"""What a constraint is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from ..passage import Passage
from ..requests import Asking


class Constraint(Protocol):
    """A frozen dataclass that says which versions of a text are allowed, and which of its words may be edited.

    ``by_slot``: whether editing only what is ``editable`` keeps it.
    """

    by_slot: ClassVar[bool]

    def editable(self, original: Passage) -> Sequence[bool]:
        """For each slot, whether it may be edited at all."""
        ...

    def check(self, original: Passage, passages: Sequence[Passage]) -> Asking[list[bool]]:
        """For each version, whether it is allowed."""
        ...


class Plain:
    """Base of constraints that need nothing but the two texts."""

    by_slot: ClassVar[bool] = False

    def editable(self, original: Passage) -> Sequence[bool]:
        return [True] * len(original)

    def check(self, original: Passage, passages: Sequence[Passage]) -> Asking[list[bool]]:
        return [self.allows(original, passage) for passage in passages]
        yield  # makes this a generator that asks for nothing

    @abstractmethod
    def allows(self, original: Passage, passage: Passage) -> bool:
        """Whether the version is allowed."""
