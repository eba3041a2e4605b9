"""Text from models, data and specs is hostile until shown otherwise: make it visible and safe in each format."""

from __future__ import annotations

import re

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_INVISIBLE = {
    **_CONTROLS,
    **dict.fromkeys(range(0x7F, 0xA0), "\N{REPLACEMENT CHARACTER}"),
    **{code: f"[U+{code:04X}]" for code in _DIRECTIONS},
    **dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"),
    **dict.fromkeys((0xFFFE, 0xFFFF), "\N{REPLACEMENT CHARACTER}"),
}


def visible(text: str) -> str:
    """``text`` without anything that a page or terminal would obey instead of show.

    Control characters become their pictures, direction overrides their code points, lone surrogates U+FFFD.
    """
    return text.translate(_INVISIBLE)


def slug(text: str, longest: int = 60) -> str:
    """Letters, digits and dashes only: safe in ids, links and rule names. Never empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].strip("-") or "x"


def shorten(text: str, longest: int) -> str:
    """``text`` cut to ``longest`` characters, the cut marked by an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def one_line(text: str) -> str:
    """``text`` with all white space folded into single blanks."""
    return " ".join(visible(text).split())


class Anchors:
    """Gives every part of a page an id of its own, whatever the names."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, *parts: str) -> str:
        stem = slug("-".join(parts))
        anchor, count = stem, 1
        while anchor in self._taken:
            count += 1
            anchor = f"{stem}-{count}"
        self._taken.add(anchor)
        return anchor
