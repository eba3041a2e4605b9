"""Universal triggers: a few words that, put before any text, make the model say one class (Wallace et al., arXiv
1908.07125)."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .passage import Passage
from .victim import Raw, Victim, scores

WordGradients = Callable[[Sequence[int], Sequence[Passage]], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Trigger:
    """What a search found.

    Attributes:
        words: the trigger.
        score: mean log odds for the target class on the texts it was fitted on.
    """

    words: tuple[str, ...]
    score: float


@dataclass(frozen=True, slots=True)
class TriggerSearch:
    """Coordinate descent over the words of a trigger, each place in turn.

    Candidates of a place are the vocabulary words that the summed gradient points to, the words of the data that speak
    most for the target class, and words drawn from the vocabulary, so that what saturates the gradient is found too.

    Attributes:
        length: words of the trigger.
        rounds: passes over all places.
        candidates: words of each of the three kinds that are tried for a place.
        screen: texts that candidates are tried on first; the best eight of them are tried on all.
    """

    length: int = 3
    rounds: int = 2
    candidates: int = 40
    screen: int = 12

    def run(
        self,
        victim: Victim,
        rows: Sequence[int],
        target: int,
        vocabulary: Sequence[str],
        *,
        vectors: Tensor | None = None,
        gradients: WordGradients | None = None,
        telling: Sequence[str] = (),
        seed: int = 0,
    ) -> Trigger:
        """The best trigger found for one class.

        Args:
            victim: its goals are all ``target`` and it is targeted.
            rows: samples to fit on, none of the target class.
            vocabulary: words to draw from; with ``vectors`` ``(n, d)`` their embeddings.
            gradients: for passages, gradients of the loss by slot, as of :class:`~.gradients.Gradients`.
            telling: words of the data, those that speak most for the class first.
        """
        rng = random.Random(f"{seed}:{target}")  # noqa: S311 - for choosing words
        first = list(rows[: self.screen])
        words = ["the"] * self.length
        best = self._score(victim, rows, target, words)
        for _ in range(self.rounds):
            before = best
            for place in range(self.length):
                pool = self._pool(victim, first, words, place, vocabulary, vectors, gradients, telling, rng)
                tried = [[*words[:place], word, *words[place + 1 :]] for word in pool]
                ranked = sorted(tried, key=lambda one: -self._score(victim, first, target, one))[:8]
                top = max(ranked, key=lambda one: self._score(victim, rows, target, one), default=words)
                score = self._score(victim, rows, target, top)
                if score > best:
                    words, best = top, score
            if best == before:
                break
        return Trigger(tuple(words), best)

    def _pool(
        self,
        victim: Victim,
        rows: Sequence[int],
        words: Sequence[str],
        place: int,
        vocabulary: Sequence[str],
        vectors: Tensor | None,
        gradients: WordGradients | None,
        telling: Sequence[str],
        rng: random.Random,
    ) -> list[str]:
        found: list[str] = [*telling[: self.candidates]]
        found += rng.sample([*vocabulary], min(self.candidates, len(vocabulary)))
        if gradients is not None and vectors is not None and len(vocabulary):
            passages = [Passage.of(with_trigger(words, victim.text(row))) for row in rows]
            total = torch.stack([gradient[place] for gradient in gradients(rows, passages)]).sum(0)
            gain = vectors @ total
            steps = (gain / gain.abs().max().clamp_min(1e-12) * 1e4).round()
            top: list[int] = steps.argsort(descending=True, stable=True)[: self.candidates].tolist()
            found += [str(vocabulary[i]) for i in top]
        return list(dict.fromkeys(found))

    def _score(self, victim: Victim, rows: Sequence[int], target: int, words: Sequence[str]) -> float:
        logits = victim.outputs(rows, [with_trigger(words, victim.text(row)) for row in rows])
        goal = torch.full((len(rows),), target)
        # Log odds beyond 5 either way say no more: one text must not outweigh many.
        return float(scores(logits, goal, targeted=True).clamp(-5, 5).mean())


def with_trigger(words: Sequence[str], text: str) -> str:
    """The text with the trigger before it."""
    return f"{' '.join(words)} {text}"


def telling_words(texts: Sequence[Raw], labels: Sequence[int], c: int, most: int = 100) -> list[str]:
    """Words of the data that speak most for class ``c`` by smoothed log odds, those first."""
    inside, outside = Counter[str](), Counter[str]()
    for text, label in zip(texts, labels, strict=True):
        joined = text if isinstance(text, str) else " ".join(text)
        (inside if label == c else outside).update(set(re.findall(r"\w+", joined.lower())))
    total = {word: inside[word] + outside[word] for word in (*inside, *outside)}
    odds = {word: (inside[word] + 0.5) / (outside[word] + 0.5) for word, n in total.items() if n > 1}
    return sorted(odds, key=lambda word: (-odds[word], word))[:most]
