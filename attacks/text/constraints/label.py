"""Edits that leave the label alone: no negation comes or goes, no number changes, no word turns into its opposite."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Literal, get_args

from ...errors import UnsupportedError
from ..passage import Passage
from .base import Plain
from .edit_distance import levenshtein
from .stopwords import STOPWORDS

Part = Literal["negations", "numbers", "opposites", "antonyms", "polarity"]
PARTS: tuple[Part, ...] = get_args(Part)

_NEGATING = (
    "no not never none nobody nothing neither nor nowhere non cannot without hardly barely scarcely rarely seldom "
    "lack lacks lacked lacking dont doesnt didnt isnt wasnt arent werent couldnt wouldnt shouldnt hasnt havent hadnt "
    "aint cant wont"
)
NEGATIONS = frozenset(_NEGATING.split())
"""Words of English that turn round what they stand with; every word that ends in n't is one too."""

_ALONE = frozenset("不没沒無无未")  # Chinese, where a character is a word
_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_NUMBERS = {word: str(number) for number, word in enumerate(_BELOW_TWENTY.split())} | {
    "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80",
    "ninety": "90", "dozen": "12", "hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000",
}  # fmt: skip
_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "mis", "anti")


@dataclass(frozen=True, slots=True)
class LabelPreserving(Plain):
    """Of each word that is exchanged, what decides a label stays: a guard for every attack that puts words in.

    - negations: a slot holds as many words of negation as before (``not``, ``never``, ``hardly``, ``n't``; English, and
      the common characters of Chinese), so none is inserted, removed or misspelt into another word;
    - numbers: the same numbers, as digits of any script or as English words;
    - opposites: no word becomes its opposite by an affix (``happy``, ``unhappy``; ``careful``, ``careless``);
    - antonyms: nor one that a dictionary calls its antonym;
    - polarity: praise stays praise, blame stays blame, and a neutral word stays neutral, by a lexicon.

    What reads the same once blanks, hyphens, case and characters of no width are gone is always allowed. With a
    dictionary a misspelling counts as the word it came from: one or two letters off and itself no word. Whether a
    sentence as a whole means the same is for :class:`~.meaning.Similarity`.

    Attributes:
        opposed: whether two words are antonyms; None: not asked.
        polarity: how positive (above 0) or negative a lower-case word is; None: not asked.
        known: whether something is a word at all; None: every string may be one.
        least: polarity of smaller size counts as none.
    """

    opposed: Callable[[str, str], bool] | None = field(default=None, repr=False, compare=False)
    polarity: Mapping[str, float] | None = field(default=None, repr=False, compare=False)
    known: Callable[[str], bool] | None = field(default=None, repr=False, compare=False)
    least: float = 0.5
    _kept: dict[tuple[str, str], bool] = field(default_factory=dict, repr=False, compare=False)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is looked at."""
        given = {"antonyms": self.opposed is not None, "polarity": self.polarity is not None}
        return tuple(part for part in PARTS if given.get(part, True))

    def only(self, parts: tuple[str, ...]) -> LabelPreserving:
        """The guard that looks at no more than these parts, those of a record for example.

        Raises:
            UnsupportedError: when it cannot look at one of them.
        """
        for part in parts:
            if part not in self.parts:
                raise UnsupportedError(f"{part} were guarded and cannot be here: WordNet or the lexicon is not found")
        return replace(
            self,
            opposed=self.opposed if "antonyms" in parts else None,
            known=self.known if "antonyms" in parts else None,
            polarity=self.polarity if "polarity" in parts else None,
            _kept={},
        )

    def allows(self, original: Passage, passage: Passage) -> bool:
        return all(self.fits(original.words[slot], passage.words[slot]) for slot in original.changed(passage))

    def fits(self, word: str, other: str) -> bool:
        """Whether ``other`` may stand in the slot of ``word``; either may be empty, or several words."""
        key = (word, other)
        if key not in self._kept:
            self._kept[key] = self._fits(_tokens(word), _tokens(other))
        return self._kept[key]

    def _fits(self, words: list[str], others: list[str]) -> bool:
        if "".join(words) == "".join(others) and _digits(words) == _digits(others):
            return True
        if any(_by_affix(word, other) for word in words for other in others):
            return False
        others = [self._meant(other, words) for other in others]
        if _numbers(words) != _numbers(others) or _negations(words) != _negations(others):
            return False
        if self._sign(words) != self._sign(others):
            return False
        if self.opposed is None:
            return True
        return not any(self.opposed(word, other) for word in words for other in others if word != other)

    def _meant(self, other: str, words: list[str]) -> str:
        """The word that a misspelling came from; anything else as it is."""
        if self.known is None or other.isdigit() or self._is_word(other):
            return other
        for word in words:
            if levenshtein(word, other) <= min(2, len(word) // 2):
                return word
        return other

    def _is_word(self, token: str) -> bool:
        listed = token in STOPWORDS or token in NEGATIONS or token in _NUMBERS or token in (self.polarity or ())
        return listed or (self.known is not None and self.known(token))

    def _sign(self, tokens: list[str]) -> int:
        if self.polarity is None:
            return 0
        total = sum(self.polarity.get(token, 0.0) for token in tokens)
        return 0 if abs(total) < self.least else 1 if total > 0 else -1


def _tokens(text: str) -> list[str]:
    """What a reader sees: words and numbers in small letters, without characters of no width."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    seen = (c for c in plain if unicodedata.category(c) != "Cf")
    found = ("".join(group).strip("'") for kind, group in groupby(seen, _kind) if kind)
    return [token for token in found if token]


@lru_cache(maxsize=4096)
def _kind(character: str) -> str:
    """Digits and words are kept apart; marks and symbols belong to words, so that none is lost."""
    category = unicodedata.category(character)
    if category == "Nd":
        return "digit"
    return "word" if category[0] in "LMN" or category == "So" or character == "'" else ""


def _digits(tokens: list[str]) -> list[str]:
    return [token for token in tokens if token[0].isdecimal()]


def _negations(tokens: list[str]) -> int:
    return sum(
        (token in NEGATIONS or token.endswith("n't")) + sum(character in _ALONE for character in token)
        for token in tokens
    )


def _numbers(tokens: list[str]) -> Counter[str]:
    """Numbers in ASCII digits."""
    digits = ("".join(str(unicodedata.digit(c)) for c in token) for token in _digits(tokens))
    return Counter(digits) + Counter(_NUMBERS[token] for token in tokens if token in _NUMBERS)


def _by_affix(word: str, other: str) -> bool:
    """Whether one is the other with a prefix or ending that turns it round."""
    short, long = sorted((word, other), key=len)
    if len(short) >= 3 and any(long == prefix + short for prefix in _PREFIXES):
        return True
    return any(
        a.endswith("less") and len(a) > 6 and b in (a[:-4], a[:-4] + "ful") for a, b in ((word, other), (other, word))
    )
