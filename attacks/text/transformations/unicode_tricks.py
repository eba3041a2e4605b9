"""Edits that a reader does not see: look-alikes, invisible characters, blanks (Boucher et al., arXiv 2106.09898)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .base import WordEdit

LOOK_ALIKES = {
    **dict(zip("aceijopsxyhkmtbnr", "асеіјорѕхуһкмтЬпг", strict=True)),
    **dict(zip("ABCEHIJKMOPSTXYZ", "АВСЕНІЈКМОРЅТХҮΖ", strict=True)),
    **dict(zip("dglquvwz", "ԁɡӏԛսѵԝᴢ", strict=True)),
    **dict(zip("0135", "ОӏЗƼ", strict=True)),
}
"""Latin letters and digits and their nearest look-alikes in Cyrillic, Greek, Armenian and phonetic blocks."""

INVISIBLE = ("\u200b", "\u200c", "\u200d", "\u2060", "\u00ad")
"""Zero-width space, non-joiner, joiner, word joiner, soft hyphen."""


@dataclass(frozen=True, slots=True)
class Homoglyphs(WordEdit):
    """One character replaced by a look-alike, and the word with all of its characters replaced.

    Attributes:
        tries: how many single replacements are tried.
    """

    tries: int = 4

    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        places = [i for i, letter in enumerate(word) if letter in LOOK_ALIKES]
        if not places:
            return ()
        chosen = rng.sample(places, min(self.tries, len(places)))
        single = [word[:i] + LOOK_ALIKES[word[i]] + word[i + 1 :] for i in chosen]
        return list(dict.fromkeys([*single, "".join(LOOK_ALIKES.get(letter, letter) for letter in word)]))


@dataclass(frozen=True, slots=True)
class Invisible(WordEdit):
    """A character of no width inside the word.

    Attributes:
        tries: how many places are tried.
    """

    tries: int = 4

    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        options = [(i, character) for i in range(1, len(word)) for character in INVISIBLE]
        chosen = rng.sample(options, min(self.tries, len(options)))
        return list(dict.fromkeys(word[:i] + character + word[i:] for i, character in chosen))


@dataclass(frozen=True, slots=True)
class Whitespace(WordEdit):
    """The word split by a blank, at some place or (``s p e l l e d``) at all.

    Attributes:
        tries: how many places are tried.
    """

    tries: int = 4

    def edits(self, word: str, rng: random.Random) -> Sequence[str]:
        places = range(1, len(word))
        if not places:
            return ()
        chosen = rng.sample(places, min(self.tries, len(places)))
        return list(dict.fromkeys([*(f"{word[:i]} {word[i:]}" for i in chosen), " ".join(word)]))
