"""How a search asks for something that is computed in batches across samples."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

Service = Callable[[Sequence[int], Sequence[Any]], Sequence[Any]]
"""Answers of one kind: the samples' rows and an item for each, in; one answer each, out."""


@dataclass(frozen=True, slots=True)
class Request:
    """Items that one sample wants answered by a service.

    Attributes:
        service: name of the service: ``victim`` for the model under attack, others for constraints and edits.
        items: hashable; equal items of a sample get one computation.
    """

    service: str
    items: Sequence[Hashable]


Asking = Generator[Request, list[Any], T]
"""A computation of one sample that yields requests, is sent their answers, and returns a ``T``.

For ``victim`` the answers may be fewer than the items: the query budget has run out.
"""
