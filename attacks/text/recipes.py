"""The text attacks by name, each with the edits, constraints and search of its paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from ..errors import UnsupportedError
from .attack import TextAttack
from .constraints.base import Constraint
from .constraints.edit_distance import EditDistance
from .constraints.label import LabelPreserving
from .constraints.meaning import Fluency, PartOfSpeech, Similarity
from .constraints.stopwords import KEEP_STOPWORDS
from .constraints.words import MaxWordsChanged, Protected, ShortestWord
from .gbda import Relaxed
from .resources.lexicon import polarity
from .resources.misspellings import misspellings
from .resources.places import glove_folder, lexicon_file, misspellings_file, wordnet_folder
from .resources.vectors import glove
from .resources.wordnet import WordNet, wordnet
from .search import Genetic, Greedy, Importance, Search
from .transformations.characters import Characters
from .transformations.distractors import Distractors
from .transformations.hotflip import HotFlip
from .transformations.keyboard import Keyboard
from .transformations.masked import Masked
from .transformations.misspelt import Misspelt
from .transformations.neighbours import Neighbours
from .transformations.synonyms import Synonyms
from .transformations.unicode_tricks import Homoglyphs, Invisible, Whitespace


@dataclass(frozen=True, slots=True)
class Resources:
    """Where recipes find what they need; each is read only when a recipe asks for it.

    Attributes:
        wordnet: folder of WordNet's files; None: where its packages put it.
        vectors: folder of word vectors; None: where the package puts it.
        misspellings: file of common misspellings; None: where the package puts it.
        lexicon: file of words' polarity; None: where the package puts it.
        words: whole words of the model's vocabulary and their embeddings ``(n, d)``, for gradient attacks.
    """

    wordnet: Path | None = None
    vectors: Path | None = None
    misspellings: Path | None = None
    lexicon: Path | None = None
    words: Callable[[], tuple[tuple[str, ...], Tensor]] | None = None

    def read_wordnet(self) -> WordNet:
        return wordnet(wordnet_folder(self.wordnet))

    def guard(self) -> WordNet | None:
        """WordNet for refusing antonyms where it is there at all."""
        try:
            return self.read_wordnet()
        except UnsupportedError:
            if self.wordnet is not None:
                raise
            return None

    def read_lexicon(self) -> Mapping[str, float] | None:
        """Polarity of words where a lexicon is there at all."""
        try:
            return polarity(lexicon_file(self.lexicon))
        except UnsupportedError:
            if self.lexicon is not None:
                raise
            return None

    def label_preserving(self) -> LabelPreserving:
        """The guard of labels, with antonyms and polarity where WordNet and a lexicon are there."""
        known = self.guard()
        dictionary = (None, None) if known is None else (known.opposed, lambda word: bool(known.parts_of_speech(word)))
        return LabelPreserving(dictionary[0], self.read_lexicon(), dictionary[1])


@dataclass(frozen=True, slots=True)
class Limits:
    """Constraints that a user sets on top of a recipe's own.

    Attributes:
        max_changed: share of the words that may be edited; None: as many as the recipe likes.
        protect: words that stay.
        similarity: smallest cosine of sentence embeddings; None: not asked.
        fluency: nats per token that a language model may find the text less likely; None: not asked.
        search: replaces the recipe's own search.
        label_preserving: whether edits must leave alone what decides a label; None: where words are exchanged by
            gradient or by nearest neighbour (:data:`GUARDED`).
    """

    max_changed: float | None = None
    protect: tuple[str, ...] = ()
    similarity: float | None = None
    fluency: float | None = None
    search: Search | None = None
    label_preserving: bool | None = None


def deepwordbug(_: Resources) -> TextAttack:
    """Swapped, substituted, deleted and inserted characters; edit distance at most 30 (arXiv 1801.04354)."""
    return TextAttack((Characters(tries=1),), (KEEP_STOPWORDS, EditDistance(30)), Importance("alone", again=8))


def characters(_: Resources) -> TextAttack:
    """Every way to edit a character of a word, most important words first; edit distance at most 30."""
    return TextAttack((Characters(tries=6),), (KEEP_STOPWORDS, ShortestWord(3), EditDistance(30)), Importance("delete"))


def typos(_: Resources) -> TextAttack:
    """Slips on the keyboard: at most a quarter of the words, as a person in a hurry would make."""
    return TextAttack((Keyboard(), Characters(("swap",), 3)), (ShortestWord(3), MaxWordsChanged(0.25)))


def misspelt(resources: Resources) -> TextAttack:
    """Common misspellings of at most half of the words, from the list of the package ``nlpaug``."""
    known = misspellings(misspellings_file(resources.misspellings))
    return TextAttack((Misspelt(known),), (MaxWordsChanged(0.5),))


def homoglyphs(_: Resources) -> TextAttack:
    """Letters replaced by look-alikes of other scripts (arXiv 2106.09898)."""
    return TextAttack((Homoglyphs(),))


def invisible(_: Resources) -> TextAttack:
    """Characters of no width put into words (arXiv 2106.09898)."""
    return TextAttack((Invisible(),))


def whitespace(_: Resources) -> TextAttack:
    """Words split by blanks."""
    return TextAttack((Whitespace(),), (ShortestWord(2),))


def pwws(resources: Resources) -> TextAttack:
    """WordNet synonyms in the order of saliency times gain (PWWS, Ren et al., ACL 2019)."""
    return TextAttack((Synonyms(resources.read_wordnet()),), (KEEP_STOPWORDS,), Importance("saliency"))


def textfooler(resources: Resources) -> TextAttack:
    """Neighbours in word vectors of the same part of speech, without antonyms (in the manner of arXiv 1907.11932)."""
    known = resources.read_wordnet()
    edits = Neighbours(glove(glove_folder(resources.vectors)), known)
    return TextAttack((edits,), (KEEP_STOPWORDS, PartOfSpeech(known.parts_of_speech)), Importance("delete"))


def masked(resources: Resources) -> TextAttack:
    """Words that a masked language model finds likely (in the manner of BAE, arXiv 2004.01970)."""
    guard = resources.guard()
    tags = (PartOfSpeech(guard.parts_of_speech),) if guard else ()
    edits = Masked(guard.opposed if guard else None)
    return TextAttack((edits,), (KEEP_STOPWORDS, *tags), Importance("delete"), frozenset({"masked"}))


def genetic(resources: Resources) -> TextAttack:
    """A population of texts with words exchanged for neighbours (Alzantot et al., arXiv 1804.07998)."""
    edits = Neighbours(glove(glove_folder(resources.vectors)), resources.guard(), most=8)
    return TextAttack((edits,), (KEEP_STOPWORDS, MaxWordsChanged(0.2)), Genetic())


def hotflip(resources: Resources) -> TextAttack:
    """Words that the gradient points to, most sensitive places first (arXiv 1712.06751)."""
    if resources.words is None:
        raise UnsupportedError("hotflip needs the model's vocabulary: a tokenizer with whole words, and an embedding")
    words, vectors = resources.words()
    if not words:
        raise UnsupportedError("hotflip needs whole words in the tokenizer's vocabulary, and this one has none")
    edits = HotFlip(words, vectors)
    search = Importance("gradient")
    return TextAttack((edits,), (KEEP_STOPWORDS, MaxWordsChanged(0.2)), search, frozenset({"gradients"}))


def distractors(_: Resources) -> TextAttack:
    """Neutral sentences before and after the text (in the manner of arXiv 1707.07328)."""
    return TextAttack((Distractors(),), (), Greedy())


def gbda(_: Resources) -> TextAttack:
    """Words from a distribution found by gradient descent (arXiv 2104.13733)."""
    return TextAttack((), (KEEP_STOPWORDS, MaxWordsChanged(0.34)), Relaxed(), frozenset({"relaxed"}))


RECIPES: Mapping[str, Callable[[Resources], TextAttack]] = MappingProxyType(
    {
        "deepwordbug": deepwordbug,
        "characters": characters,
        "typos": typos,
        "misspelt": misspelt,
        "homoglyphs": homoglyphs,
        "invisible": invisible,
        "whitespace": whitespace,
        "pwws": pwws,
        "textfooler": textfooler,
        "masked": masked,
        "genetic": genetic,
        "hotflip": hotflip,
        "distractors": distractors,
        "gbda": gbda,
    }
)

FREE = frozenset({"hotflip", "gbda"})
"""Attacks that do not try to keep the meaning: what they find need not be read as the label by a person."""

GUARDED = FREE | {"textfooler", "masked", "genetic"}
"""Attacks that exchange words by gradient or nearest neighbour: :class:`LabelPreserving` unless told otherwise."""

SEARCHES: Mapping[str, Search] = MappingProxyType(
    {
        "importance": Importance("delete"),
        "importance_unk": Importance("unk"),
        "importance_alone": Importance("alone"),
        "saliency": Importance("saliency"),
        "gradient": Importance("gradient"),
        "greedy": Greedy(),
        "beam": Greedy(width=4),
        "genetic": Genetic(),
        "random": Importance("random"),
    }
)


def build(name: str, resources: Resources | None = None, limits: Limits | None = None) -> TextAttack:
    """The attack of that name, under further limits.

    Raises:
        UnsupportedError: for an unknown name, or a resource that is not on this machine.
    """
    if name not in RECIPES:
        raise UnsupportedError(f"unknown text attack {name!r}: choose one of {', '.join(RECIPES)}")
    resources, limits = resources or Resources(), limits or Limits()
    attack = RECIPES[name](resources)
    guard = resources.label_preserving() if guards(name, limits.label_preserving) else None
    search = limits.search or attack.search
    needed = set(attack.services)
    if isinstance(search, Importance) and search.ranking == "gradient":
        needed.add("gradients")
    needed |= {"sentences"} if limits.similarity is not None else set()
    needed |= {"fluency"} if limits.fluency is not None else set()
    constraints = (*_limits(limits), *attack.constraints, *([guard] if guard else []))
    # Those that ask a model come last: what plain ones refuse costs nothing.
    ordered = (*_plain(constraints), *_costly(constraints))
    edits = attack.transformations
    if guard is not None:
        edits = tuple(replace(one, fits=guard.fits) if isinstance(one, HotFlip) else one for one in edits)
    return replace(attack, transformations=edits, constraints=ordered, search=search, services=frozenset(needed))


def guards(name: str, wanted: bool | None) -> bool:
    """Whether an attack keeps labels, as told or by what it is."""
    return name in GUARDED if wanted is None else wanted


def guard_of(attack: TextAttack) -> LabelPreserving | None:
    """The guard of labels among an attack's constraints."""
    return next((one for one in attack.constraints if isinstance(one, LabelPreserving)), None)


def _limits(limits: Limits) -> list[Constraint]:
    found: list[Constraint] = []
    if limits.max_changed is not None:
        found.append(MaxWordsChanged(limits.max_changed))
    if limits.protect:
        found.append(Protected.of(limits.protect))
    if limits.similarity is not None:
        found.append(Similarity(limits.similarity))
    if limits.fluency is not None:
        found.append(Fluency(limits.fluency))
    return found


def _costly(constraints: Sequence[Constraint]) -> list[Constraint]:
    return [one for one in constraints if isinstance(one, Similarity | Fluency)]


def _plain(constraints: Sequence[Constraint]) -> list[Constraint]:
    return [one for one in constraints if not isinstance(one, Similarity | Fluency)]
