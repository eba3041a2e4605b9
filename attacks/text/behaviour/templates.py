"""Templates of sentences whose label is known: minimum functionality and direction tests of sentiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

POSITIVE, NEGATIVE = "positive", "negative"

FILLERS: Mapping[str, Sequence[str]] = {
    "thing": ("film", "service", "book", "food"),
    "good": ("great", "excellent", "wonderful", "enjoyable"),
    "bad": ("terrible", "awful", "boring", "disappointing"),
    "name": ("Anna", "Omar", "Mei", "Thomas"),
}


@dataclass(frozen=True, slots=True)
class Template:
    """A sentence with fillers in braces, and what a model of sentiment must say of it.

    Attributes:
        test: what is tested: vocabulary, negation, tense, names, comparison …
        label: ``positive`` or ``negative``.
    """

    test: str
    text: str
    label: str

    def sentences(self, fillers: Mapping[str, Sequence[str]] = FILLERS) -> Iterator[str]:
        """Every way to fill the template."""
        used = [name for name in fillers if f"{{{name}}}" in self.text]
        for words in product(*(fillers[name] for name in used)):
            yield self.text.format(**dict(zip(used, words, strict=True)))


SENTIMENT = (
    Template("vocabulary", "The {thing} was {good}.", POSITIVE),
    Template("vocabulary", "The {thing} was {bad}.", NEGATIVE),
    Template("vocabulary", "What a {good} {thing}!", POSITIVE),
    Template("vocabulary", "This is a {bad} {thing}.", NEGATIVE),
    Template("negation", "The {thing} was not {good}.", NEGATIVE),
    Template("negation", "The {thing} wasn't {good} at all.", NEGATIVE),
    Template("negation", "The {thing} was not {bad} at all, I liked it.", POSITIVE),
    Template("negation", "I thought the {thing} would be {bad}, but it was not.", POSITIVE),
    Template("tense", "I used to think this {thing} was {bad}, now I think it is {good}.", POSITIVE),
    Template("tense", "I used to think this {thing} was {good}, now I think it is {bad}.", NEGATIVE),
    Template("others", "{name} says the {thing} was {bad}, but I think it was {good}.", POSITIVE),
    Template("others", "{name} says the {thing} was {good}, but I think it was {bad}.", NEGATIVE),
    Template("neutral", "{name} and I saw the {thing} on Tuesday and it was {good}.", POSITIVE),
    Template("neutral", "{name} and I saw the {thing} on Tuesday and it was {bad}.", NEGATIVE),
)

ADDED: Mapping[str, Sequence[str]] = {
    POSITIVE: ("I loved it.", "It was a joy.", "Highly recommended."),
    NEGATIVE: ("I hated it.", "It was a waste of time.", "Not recommended."),
}
"""Sentences that, added to any text, may only move a model of sentiment one way."""
