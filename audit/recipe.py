"""How a model's weights came about, for those who train others the same way."""

from __future__ import annotations

from dataclasses import dataclass

from ..defenses.scope import Scope

RANDOM, BASE = "random", "base"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where a training began and what it changed.

    Attributes:
        start: ``random``; ``base``, the weights of the model that a variant was made from; or a file, as the spec
            names it.
        new_head: whether the last layer was drawn afresh before.
        scope: what was trained; the rest stayed as it was at the start.
    """

    start: str = RANDOM
    new_head: bool = False
    scope: Scope = "all"

    @property
    def file(self) -> str | None:
        """The file of weights to start from, if it is one."""
        return None if self.start in (RANDOM, BASE) else self.start
