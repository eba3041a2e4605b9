"""Edits that leave the label alone: other names, other numbers, contractions, case, punctuation, typing slips."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from ..passage import Passage
from ..transformations.characters import Characters
from ..transformations.keyboard import Keyboard

_POOLS = tuple(
    tuple(names.split())
    for names in (
        "Anna Maria Emily Sarah Laura Julia Emma Sofia Olivia Grace Fatima Aisha Mei Yuki Priya Ananya Amina Chloe",
        "James John Robert Michael David Peter Thomas Daniel Paul Mark Ahmed Omar Wei Kenji Arjun Chidi Kwame Luca",
        "London Paris Berlin Madrid Rome Tokyo Beijing Delhi Cairo Lagos Lima Boston Chicago Sydney Toronto",
    )
)
_POOL_OF = {word: pool for pool in _POOLS for word in pool}
"""Names are exchanged within their pool, so that pronouns stay right."""

_CONTRACTIONS = {
    "is not": "isn't", "are not": "aren't", "was not": "wasn't", "were not": "weren't", "do not": "don't",
    "does not": "doesn't", "did not": "didn't", "cannot": "can't", "could not": "couldn't", "would not": "wouldn't",
    "will not": "won't", "should not": "shouldn't", "has not": "hasn't", "have not": "haven't", "had not": "hadn't",
    "it is": "it's", "that is": "that's", "there is": "there's", "I am": "I'm", "you are": "you're", "we are": "we're",
    "they are": "they're", "I have": "I've", "you have": "you've", "I will": "I'll", "you will": "you'll",
}  # fmt: skip
_EXPANSIONS = {short: long for long, short in _CONTRACTIONS.items()}
_PATTERN = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, [*_CONTRACTIONS, *_EXPANSIONS]), key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])[1-9]\d{1,3}(?![\w.])")


def names(text: str, rng: random.Random) -> list[str]:
    """Each name of a person or city exchanged for others of its kind."""
    passage = Passage.of(text)
    slots = [i for i, word in enumerate(passage.words) if word in _POOL_OF]
    found = []
    for _ in range(3 if slots else 0):
        other = {
            i: rng.choice([name for name in _POOL_OF[passage.words[i]] if name != passage.words[i]]) for i in slots
        }
        found.append(passage.with_words(other).text)
    return found


def numbers(text: str, rng: random.Random) -> list[str]:
    """Each whole number of two to four digits exchanged for one of the same length."""
    if not _NUMBER.search(text):
        return []

    def other(match: re.Match[str]) -> str:
        digits = len(match[0])
        return str(rng.randrange(10 ** (digits - 1), 10**digits))

    return [_NUMBER.sub(other, text) for _ in range(3)]


def contractions(text: str, rng: random.Random) -> list[str]:
    """``is not`` written ``isn't`` and the other way round."""
    del rng

    def other(match: re.Match[str]) -> str:
        word = match[0]
        table = {key.lower(): value for key, value in (*_CONTRACTIONS.items(), *_EXPANSIONS.items())}
        changed = table[word.lower()]
        return changed[:1].upper() + changed[1:] if word[:1].isupper() else changed

    return [_PATTERN.sub(other, text)] if _PATTERN.search(text) else []


def typo(text: str, rng: random.Random) -> list[str]:
    """One slip in one word of four letters or more, three times."""
    passage = Passage.of(text)
    slots = [i for i, word in enumerate(passage.words) if len(word) >= 4 and word.isalpha()]
    found = []
    for slot in rng.sample(slots, min(3, len(slots))):
        options = [
            *Characters(("swap",), 1).edits(passage.words[slot], rng),
            *Keyboard(1).edits(passage.words[slot], rng),
        ]
        found += [passage.with_word(slot, rng.choice(options)).text] if options else []
    return found


def case(text: str, rng: random.Random) -> list[str]:
    """All lower case, all upper case."""
    del rng
    return [text.lower(), text.upper()]


def punctuation(text: str, rng: random.Random) -> list[str]:
    """Without the final mark, and with a full stop or exclamation at the end."""
    del rng
    bare = text.rstrip().rstrip(".!?")
    return [bare, bare + ".", bare + "!"] if bare.strip() else []


INVARIANT: Mapping[str, Callable[[str, random.Random], Sequence[str]]] = MappingProxyType(
    {
        "names": names,
        "numbers": numbers,
        "contractions": contractions,
        "typos": typo,
        "case": case,
        "punctuation": punctuation,
    }
)
"""Tests of invariance: a text to versions that mean the same (none where it has nothing of the kind)."""


def variants(name: str, text: str, rng: random.Random) -> list[str]:
    """The versions of a test that differ from the text, each once."""
    return [other for other in dict.fromkeys(INVARIANT[name](text, rng)) if other != text]
