"""How positive or negative words are."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path


@cache
def polarity(file: Path) -> dict[str, float]:
    """Polarity by lower-case word, above zero for praise: a word, a tab and a number on each line; more is ignored.

    The lexicon of the package ``vaderSentiment`` (Hutto and Gilbert, ICWSM 2014) is such a file, on a scale of -4 to 4.
    """
    found: dict[str, float] = {}
    for line in file.read_text("utf-8", errors="replace").splitlines():
        word, _, rest = line.partition("\t")
        value = _number(rest.partition("\t")[0])
        if word.strip() and value is not None:
            found[word.strip().casefold()] = value
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
