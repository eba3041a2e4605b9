"""Common misspellings of English words."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def misspellings(file: Path) -> dict[str, tuple[str, ...]]:
    """Misspellings by lower-case word, from a file with a word and its misspellings on each line."""
    found: dict[str, tuple[str, ...]] = {}
    for line in file.read_text("utf-8").splitlines():
        word, *wrong = line.split()[:50] or [""]
        if word and wrong:
            found[word.lower()] = tuple(dict.fromkeys(wrong))
    return found
