"""How many substituted words the vote over masked versions of a text provably withstands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ...attacks.statistics import rate_interval
from ...attacks.text.passage import Passage
from ...defenses.random_mask import certified_words, masked_versions, words_kept
from ...defenses.smoothing import lower_bound
from ...reports.record import Chart, Line, Metric, Result
from ..errors import UnsupportedError
from ..loading.tokens import HuggingFaceEncode
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

    It certifies the vote, not the model's answer to the whole text; the variant `random_mask` trains for it.
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
    }
    cost: ClassVar[str] = "50 + draws forward passes per text, fewer for short ones"

    masked: float = Field(
        default=0.7,
        gt=0.5,
        lt=1,
        description="Share of the words hidden in each version; where half are in sight nothing can be proven.",
    )
    draws: int = Field(default=500, ge=50, description="Versions that bound the winner's probability.")
    alpha: float = Field(default=0.001, gt=0, lt=0.5, description="Probability that a text's certificate is wrong.")
    words: int = Field(default=5, ge=1, description="Largest number of replaced words that is reported.")
    mask: str | None = Field(default=None, description="The word that hides; the tokenizer's mask token if left out.")
    limit: int | None = Field(default=100, ge=1, description="Certify at most so many texts, evenly spaced.")
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is masked.")

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        texts = Texts.of(target, samples, self.limit, int(self.column == "second"))
        context.progress.start(self.title, len(texts))
        found = torch.tensor([self._voted(texts, row, context) for row in range(len(texts))])
        tensors = {
            "ids": torch.from_numpy(texts.samples.ids),
            "labels": texts.y,
            "candidate": found[:, 0].contiguous(),
            "votes": found[:, 1].contiguous(),
        }
        radius = self._radius(texts, tensors)
        metrics = tuple(self._metrics(texts, tensors, radius))
        value = {metric.name: metric.value or 0.0 for metric in metrics}
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=f"The vote over texts with {100 * self.masked:g} % of the words hidden is right on "
            f"{percent(value['clean_accuracy'])} of {len(texts)} texts, and provably stays so on "
            f"{percent(value['certified_accuracy'])} whichever single word is replaced.",
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}, exclude_none=True),
            metrics=metrics,
            figures=(self._chart(texts, radius),),
            evidence=(context.evidence("votes", tensors),),
            not_covered=(
                "Words inserted or deleted, and changes of punctuation and blanks: the proof is for words replaced in "
                "their places.",
                "The model's answer to the whole text: the proof is for the vote.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=len(texts) * (_FIRST + self.draws),
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        texts = Texts.of(target, samples, self.limit, int(self.column == "second"))
        recorded = context.read_evidence(result.evidence[0])
        same = np.array_equal(recorded["ids"].numpy(), texts.samples.ids) and torch.equal(recorded["labels"], texts.y)
        yield Claim("the votes are on the audited texts and labels", same)
        if not same:
            return
        rows = [i * len(texts) // _AGAIN for i in range(_AGAIN)] if len(texts) > _AGAIN else range(len(texts))
        agree = 0
        for row in rows:
            candidate, votes = self._voted(texts, row, context)
            near = abs(votes - int(recorded["votes"][row])) <= max(2, self.draws // 200)  # near ties on other hardware
            agree += near and candidate == int(recorded["candidate"][row])
        yield Claim(
            "votes are counted again as recorded", agree == len(rows), f"{agree} of {len(rows)} looked at again"
        )
        for metric in self._metrics(texts, recorded, self._radius(texts, recorded)):
            claimed = result.metric(metric.name)
            ok = claimed is not None and abs((claimed.value or 0) - (metric.value or 0)) <= 1e-9
            yield Claim(f"{metric.name} follows from the votes", ok)

    def _voted(self, texts: Texts, row: int, context: Context) -> tuple[int, int]:
        """The class that the first draws suggest, and how many of the others vote for it."""
        rng = np.random.default_rng([context.seed, int(texts.samples.ids[row])])
        draws, mask = _FIRST + self.draws, self._mask(texts.target)
        versions = masked_versions(texts.text(row), self.masked, draws, mask, rng)
        said = texts.logits([texts.with_text(row, version) for version in versions]).argmax(1)
        candidate = int(said[:_FIRST].bincount().argmax())
        context.progress.advance(1)
        return candidate, int((said[_FIRST:] == candidate).sum())

    def _mask(self, target: Target) -> str:
        if self.mask is not None:
            return self.mask
        tokenizer = target.encode.tokenizer if isinstance(target.encode, HuggingFaceEncode) else None
        token = getattr(tokenizer, "mask_token", None)
        if token is None:
            raise UnsupportedError("text_certification: the tokenizer has no mask token; name a word in `mask`")
        return token

    def _radius(self, texts: Texts, tensors: Mapping[str, Tensor]) -> NDArray[np.int64]:
        """Words ``(n,)`` that may be replaced; -1 where the vote does not decide or is wrong."""
        p = lower_bound(tensors["votes"], self.draws, self.alpha).tolist()
        right = (tensors["candidate"] == tensors["labels"]).tolist()
        counts = [len(Passage.of(texts.text(row))) for row in range(len(texts))]
        return np.array(
            [
                certified_words(bound, n, words_kept(n, self.masked)) if ok and bound > 0.5 else -1
                for bound, n, ok in zip(p, counts, right, strict=True)
            ],
            dtype=np.int64,
        )

    def _metrics(self, texts: Texts, tensors: Mapping[str, Tensor], radius: NDArray[np.int64]) -> Iterator[Metric]:
        n = len(texts)
        label = "Accuracy of the vote"
        yield rate("clean_accuracy", int((radius >= 0).sum()), n, label=label, higher_is_better=True)
        label = "Provably right with any one word replaced"
        yield rate("certified_accuracy", int((radius >= 1).sum()), n, label=label, higher_is_better=True)
        for words in range(2, self.words + 1):
            label, count = f"Provably right with any {words} words replaced", int((radius >= words).sum())
            yield rate(f"certified_accuracy_at_{words}", count, n, label=label, higher_is_better=True)
        undecided = int((lower_bound(tensors["votes"], self.draws, self.alpha) <= 0.5).sum())
        yield rate("abstained", undecided, n, label="Texts on which the vote does not decide", higher_is_better=False)

    def _chart(self, texts: Texts, radius: NDArray[np.int64]) -> Chart:
        x = range(self.words + 1)
        counts = [int((radius >= words).sum()) for words in x]
        ends = [rate_interval(count, len(texts)) for count in counts]
        line = Line(
            name="certified accuracy",
            x=tuple(map(float, x)),
            y=tuple(count / len(texts) for count in counts),
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
