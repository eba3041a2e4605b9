"""How many substituted words the vote over masked versions of a text provably withstands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ...attacks.statistics import rate_interval
from ...attacks.text.passage import Passage
from ...defenses.random_mask import Masks, certified_words, estimated_words, words_kept
from ...defenses.smoothing import lower_bound
from ...reports.record import Chart, Line, Metric, Result
from ..errors import UnsupportedError
from ..loading.tokens import HuggingFaceEncode
from ..loading.voting import VotingEncode, voter
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .metrics import percent, rate
from .text_inputs import Texts

_FIRST = 50
"""Draws that choose the class whose probability is then bounded."""

_AGAIN = 8
"""Texts whose votes ``verify`` counts again, at most."""


class TextCertification(Check):
    """Lets the model vote on versions of each text with most words hidden, and counts the words that may be replaced.

    It certifies the vote, not the model's answer to the whole text; the variant `random_mask` trains for it and answers
    by it. For each set of words the bound rests on the versions that hide them, and the worst set counts.
    """

    name: ClassVar[str] = "text_certification"
    title: ClassVar[str] = "Certified robustness of texts"
    question: ClassVar[str] = "How many replaced words does the vote over masked texts provably withstand?"
    requires: ClassVar[frozenset[Access]] = frozenset({"labels"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    references: ClassVar[tuple[str, ...]] = (
        "Zeng et al., Certified Robustness to Text Adversarial Attacks by Randomized [MASK], arXiv 2105.03743",
        "Levine and Feizi, Robustness Certificates for Sparse Adversarial Attacks, arXiv 1911.09272",
    )
    standards: ClassVar[tuple[str, ...]] = standards.EVASION
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of texts on which the vote gives the label; undecided ones count as wrong.",
        "certified_accuracy": "Share of texts on which it provably does whichever single word is replaced.",
        "certified_accuracy_at_WORDS": "The same for so many words at once.",
        "abstained": "Share of texts on which the vote does not decide.",
        "estimated_accuracy": "What RanMASK would report for one word: no proof, as it takes the mean over words where "
        "an attacker takes the worst.",
    }
    cost: ClassVar[str] = "50 + draws forward passes per text, fewer for short ones"
    version: ClassVar[int] = 2

    masked: float | None = Field(
        default=None,
        gt=0.5,
        lt=1,
        description="Share of the words hidden in each version; where half are in sight nothing can be proven. As the "
        "target votes, or 0.7 if left out.",
    )
    draws: int = Field(default=500, ge=50, description="Versions that bound the winner's probability.")
    alpha: float = Field(default=0.001, gt=0, lt=0.5, description="Probability that a text's certificate is wrong.")
    words: int = Field(default=5, ge=1, description="Largest number of replaced words that is reported.")
    mask: str | None = Field(default=None, description="The word that hides; the tokenizer's mask token if left out.")
    limit: int | None = Field(default=100, ge=1, description="Certify at most so many texts, evenly spaced.")
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is masked.")

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        poll = self._poll(target, samples, context)
        context.progress.start(self.title, len(poll.texts))
        said = []
        for row in range(len(poll.texts)):
            said.append(poll.asked(row))
            context.progress.advance(1)
        metrics, radius = poll.metrics(said, self.words), poll.radius(said)
        value = {metric.name: metric.value or 0.0 for metric in metrics}
        n = len(poll.texts)
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=f"The vote over texts with {100 * poll.masked:g} % of the words hidden is right on "
            f"{percent(value['clean_accuracy'])} of {n} texts, and provably stays so on "
            f"{percent(value['certified_accuracy'])} whichever single word is replaced.",
            status="ok",
            parameters={**self.model_dump(exclude={"id", "variants"}, exclude_none=True), "masked": poll.masked},
            metrics=metrics,
            figures=(self._chart(n, radius),),
            evidence=(context.evidence("votes", poll.tensors(said)),),
            not_covered=(
                "Words inserted or deleted, and changes of punctuation and blanks: the proof is for words replaced in "
                "their places.",
                "The model's answer to the whole text: the proof is for the vote over all masks.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=sum(map(len, said)),
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        poll = self._poll(target, samples, context)
        recorded = context.read_evidence(result.evidence[0])
        n = len(poll.texts)
        same = np.array_equal(recorded["ids"].numpy(), poll.texts.samples.ids) and torch.equal(
            recorded["labels"], poll.texts.y
        )
        yield Claim("the votes are on the audited texts and labels", same)
        if not same:
            return
        said = list(recorded["said"].split(recorded["versions"].tolist()))
        rows = [i * n // _AGAIN for i in range(_AGAIN)] if n > _AGAIN else range(n)
        agree = 0
        for row in rows:
            again = poll.asked(row)
            near = len(again) == len(said[row]) and int((again != said[row]).sum()) <= max(2, self.draws // 200)
            agree += near  # a few near ties may fall otherwise on other hardware
        yield Claim(
            "votes are counted again as recorded", agree == len(rows), f"{agree} of {len(rows)} looked at again"
        )
        for metric in poll.metrics(said, self.words):
            claimed = result.metric(metric.name)
            ok = claimed is not None and abs((claimed.value or 0) - (metric.value or 0)) <= 1e-9
            yield Claim(f"{metric.name} follows from the votes", ok)

    def _poll(self, target: Target, samples: Samples, context: Context) -> Poll:
        deployed = target.encode if isinstance(target.encode, VotingEncode) else None
        column = int(self.column == "second")
        if deployed is None:
            masked, mask = 0.7 if self.masked is None else self.masked, self._mask(target)
        elif self.masked not in (None, deployed.masked) or self.mask not in (None, deployed.mask):
            raise UnsupportedError(
                f"text_certification: the target votes with {100 * deployed.masked:g} % of the words hidden by "
                f"{deployed.mask}; leave out masked and mask, or name other variants"
            )
        else:
            masked, mask, column = deployed.masked, deployed.mask, deployed.column
        texts = Texts.of(voter(target), samples, self.limit, column)
        return Poll(texts, masked, mask, self.draws, self.alpha, context.seed)

    def _mask(self, target: Target) -> str:
        if self.mask is not None:
            return self.mask
        tokenizer = target.encode.tokenizer if isinstance(target.encode, HuggingFaceEncode) else None
        token = getattr(tokenizer, "mask_token", None)
        if token is None:
            raise UnsupportedError("text_certification: the tokenizer has no mask token; name a word in `mask`")
        return token

    def _chart(self, n: int, radius: NDArray[np.int64]) -> Chart:
        x = range(self.words + 1)
        counts = [int((radius >= words).sum()) for words in x]
        ends = [rate_interval(count, n) for count in counts]
        line = Line(
            name="certified accuracy",
            x=tuple(map(float, x)),
            y=tuple(count / n for count in counts),
            low=tuple(low for low, _ in ends),
            high=tuple(high for _, high in ends),
        )
        return Chart(
            id="certified",
            title="Certified accuracy against replaced words",
            caption=f"Each text's certificate holds with probability {1 - self.alpha:g}. Bands: 95 % intervals.",
            x_label="words replaced",
            y_label="accuracy",
            y_range=(0, 1),
            lines=(line,),
        )


@dataclass(frozen=True, slots=True)
class Poll:
    """The vote over masked versions of each text.

    Attributes:
        masked: share of the words hidden.
        mask: the word that hides.
        draws: versions that bound the winner's probability; :data:`_FIRST` more choose it.
    """

    texts: Texts
    masked: float
    mask: str
    draws: int
    alpha: float
    seed: int

    def asked(self, row: int) -> Tensor:
        """What the model says of each version of a text, int16 ``(m,)``."""
        versions = self._masks(row).versions(Passage.of(self.texts.text(row)), self.mask)
        return self.texts.logits([self.texts.with_text(row, text) for text in versions]).argmax(1).short()

    def tensors(self, said: Sequence[Tensor]) -> dict[str, Tensor]:
        """The evidence: the answers of all texts one after the other."""
        return {
            "ids": torch.from_numpy(self.texts.samples.ids),
            "labels": self.texts.y,
            "said": torch.cat(list(said)),
            "versions": torch.tensor([len(one) for one in said]),
        }

    def radius(self, said: Sequence[Tensor]) -> NDArray[np.int64]:
        """Words ``(n,)`` that may be replaced; -1 where the vote does not decide or is wrong."""
        found = [
            certified_words(votes, masks, self.alpha) if right else -1 for votes, masks, right in self._votes(said)
        ]
        return np.array(found, dtype=np.int64)

    def metrics(self, said: Sequence[Tensor], words: int) -> tuple[Metric, ...]:
        """Rates over the texts; the largest number of replaced words is ``words``."""
        return tuple(self._metrics(said, self.radius(said), words))

    def _metrics(self, said: Sequence[Tensor], radius: NDArray[np.int64], words: int) -> Iterator[Metric]:
        n = len(said)
        label = "Accuracy of the vote"
        yield rate("clean_accuracy", int((radius >= 0).sum()), n, label=label, higher_is_better=True)
        label = "Provably right with any one word replaced"
        yield rate("certified_accuracy", int((radius >= 1).sum()), n, label=label, higher_is_better=True)
        for count in range(2, words + 1):
            label, certified = f"Provably right with any {count} words replaced", int((radius >= count).sum())
            yield rate(f"certified_accuracy_at_{count}", certified, n, label=label, higher_is_better=True)
        bounds = [(self._bound(votes, masks), masks, right) for votes, masks, right in self._votes(said)]
        undecided = sum(p <= 0.5 for p, _, _ in bounds)
        yield rate("abstained", undecided, n, label="Texts on which the vote does not decide", higher_is_better=False)
        estimated = sum(right and self._estimated(p, masks) >= 1 for p, masks, right in bounds)
        label = "Right with one word replaced, by RanMASK's estimate"
        yield rate("estimated_accuracy", estimated, n, label=label, higher_is_better=None)

    def _votes(self, said: Sequence[Tensor]) -> Iterator[tuple[NDArray[np.bool_], Masks, bool]]:
        """For each text the votes for the class that was chosen, their masks, and whether that class is right."""
        for row, answers in enumerate(said):
            masks, label = self._masks(row), int(self.texts.y[row])
            first, rest = (answers, answers) if masks.complete else (answers[:_FIRST], answers[_FIRST:])
            seen = masks.seen if masks.complete else masks.seen[_FIRST:]
            chosen = int(first.long().bincount().argmax())
            yield (rest == chosen).numpy(), Masks(seen, masks.complete), chosen == label

    def _masks(self, row: int) -> Masks:
        words = len(Passage.of(self.texts.text(row)))
        rng = np.random.default_rng([self.seed, int(self.texts.samples.ids[row])])
        return Masks.draw(words, words_kept(words, self.masked), _FIRST + self.draws, rng)

    def _bound(self, votes: NDArray[np.bool_], masks: Masks) -> float:
        """The class's share of all masks: counted, or bounded from below."""
        if masks.complete:
            return float(votes.mean())
        return float(lower_bound(torch.tensor([votes.sum()]), len(votes), self.alpha))

    def _estimated(self, p: float, masks: Masks) -> int:
        return estimated_words(p, masks.seen.shape[1], int(masks.seen[0].sum())) if p > 0.5 else -1
