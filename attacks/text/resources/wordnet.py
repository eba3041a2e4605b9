"""WordNet (Miller, 1995) read from its own database files: synonyms, antonyms, parts of speech."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_SUFFIXES = {
    "n": (
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}
"""Inflections and what stands in their place in the base form (WordNet's own rules of detachment)."""


@dataclass(frozen=True, slots=True)
class Synset:
    """Words of one meaning, and pointers to others: symbol, part of speech, offset, words it holds for."""

    words: tuple[str, ...]
    pointers: tuple[tuple[str, str, int, int, int], ...]


@dataclass(slots=True)
class WordNet:
    """A reader of ``index.*`` and ``data.*``.

    Attributes:
        index: offsets of the synsets of each lower-case word, by part of speech (n, v, a, r), frequent senses first.
        data: the content of each data file.
    """

    index: dict[str, dict[str, tuple[int, ...]]]
    data: dict[str, bytes]
    _kept: dict[tuple[str, int], Synset] = field(default_factory=dict)
    _synonyms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _antonyms: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> WordNet:
        """The database in a folder, 30 MB, in about a second."""
        index = {pos: _index((folder / f"index.{name}").read_text("utf-8")) for pos, name in _FILES.items()}
        return cls(index, {pos: (folder / f"data.{name}").read_bytes() for pos, name in _FILES.items()})

    def bases(self, word: str) -> Iterator[tuple[str, str, str, str]]:
        """Part of speech, base form, and which ending of ``word`` stands for which ending of the base."""
        lower = word.lower()
        for pos, entries in self.index.items():
            if lower in entries:
                yield pos, lower, "", ""
            for ending, base_ending in _SUFFIXES[pos]:
                base = lower[: len(lower) - len(ending)] + base_ending
                if lower.endswith(ending) and len(base) > 1 and base in entries:
                    yield pos, base, ending, base_ending

    def parts_of_speech(self, word: str) -> frozenset[str]:
        """Those a word can have; empty for unknown words."""
        return frozenset(pos for pos, *_ in self.bases(word))

    def synonyms(self, word: str) -> tuple[str, ...]:
        """Single words that share a synset with ``word``, inflected like it, in the order of the senses."""
        if word not in self._synonyms:
            found: dict[str, None] = {}
            for pos, base, ending, base_ending in self.bases(word):
                for synset in self._synsets(pos, base):
                    for other in synset.words:
                        if other.lower() != base and other.replace("-", "").isalpha():
                            found[_inflected(other, ending, base_ending)] = None
            found.pop(word.lower(), None)
            self._synonyms[word] = tuple(found)
        return self._synonyms[word]

    def antonyms(self, word: str) -> frozenset[str]:
        """Opposites in any sense, those of similar adjectives included, as lower-case base forms."""
        if word not in self._antonyms:
            found: set[str] = set()
            for pos, base, *_ in self.bases(word):
                for synset in self._synsets(pos, base):
                    found |= set(self._opposites(synset, base))
            self._antonyms[word] = frozenset(found)
        return self._antonyms[word]

    def opposed(self, word: str, other: str) -> bool:
        """Whether one is an antonym of the other."""
        ours, theirs = {base for _, base, *_ in self.bases(word)}, {base for _, base, *_ in self.bases(other)}
        return bool(theirs & self.antonyms(word)) or bool(ours & self.antonyms(other))

    def _opposites(self, synset: Synset, base: str, *, near: bool = True) -> Iterator[str]:
        own = {i + 1 for i, word in enumerate(synset.words) if word.lower() == base}
        for symbol, pos, offset, source, target in synset.pointers:
            if symbol == "!" and (source in own or not near):
                opposite = self._synset(pos, offset)
                yield opposite.words[target - 1].lower() if target else opposite.words[0].lower()
                # Adjectives cluster around a head: what is similar to an opposite is one too.
                for kind, other_pos, other, *_ in opposite.pointers:
                    if kind == "&":
                        yield from (word.lower() for word in self._synset(other_pos, other).words)
            elif symbol == "&" and near:
                yield from self._opposites(self._synset(pos, offset), base, near=False)

    def _synsets(self, pos: str, base: str) -> Iterator[Synset]:
        for offset in self.index[pos].get(base, ()):
            yield self._synset(pos, offset)

    def _synset(self, pos: str, offset: int) -> Synset:
        pos = "a" if pos == "s" else pos
        if (pos, offset) not in self._kept:
            data = self.data[pos]
            self._kept[pos, offset] = _synset(data[offset : data.index(b"\n", offset)].decode("utf-8"))
        return self._kept[pos, offset]


@cache
def wordnet(folder: Path) -> WordNet:
    """The database in a folder, read once per process."""
    return WordNet.read(folder)


def _index(content: str) -> dict[str, tuple[int, ...]]:
    entries: dict[str, tuple[int, ...]] = {}
    for line in content.splitlines():
        if not line.startswith(" "):
            parts = line.split()
            entries[parts[0]] = tuple(int(offset) for offset in parts[-int(parts[2]) :])
    return entries


def _synset(line: str) -> Synset:
    """``offset lex_filenum ss_type w_cnt word lex_id … p_cnt pointer … | gloss``, counts of words in hexadecimal."""
    parts = line.partition(" | ")[0].split()
    count = int(parts[3], 16)
    words = tuple(part.partition("(")[0] for part in parts[4 : 4 + 2 * count : 2])
    place = 4 + 2 * count
    pointers = []
    for i in range(int(parts[place])):
        symbol, offset, pos, ends = parts[place + 1 + 4 * i : place + 5 + 4 * i]
        pointers.append((symbol, pos, int(offset), int(ends[:2], 16), int(ends[2:], 16)))
    return Synset(words, tuple(pointers))


def _inflected(base: str, ending: str, base_ending: str) -> str:
    """``base`` with the ending that another word of its part of speech had, as spelling has it."""
    del base_ending
    match ending:
        case "":
            return base
        case "s" | "ses" | "xes" | "zes" | "ches" | "shes" | "es" | "ies" | "men":
            if base.endswith(("s", "x", "z", "ch", "sh")):
                return base + "es"
            return base[:-1] + "ies" if base.endswith("y") and base[-2:-1] not in "aeiou" else base + "s"
        case _:
            if base.endswith("e"):
                return base[:-1] + ending
            return base[:-1] + "i" + ending if base.endswith("y") and ending != "ing" else base + ending
