"""Whether secrets that were planted in the training texts stand out from others of the same form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from ...attacks.text.victim import Raw
from ...privacy.exposure import Exposure, exposures
from ...reports.record import Finding, Metric, Result, Table
from .. import registry
from ..errors import SpecError, UnsupportedError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .metrics import estimate, rate, recomputed
from .text_inputs import Texts

GAP = "{}"
_LEVEL = 0.05


class CanaryExposure(Check):
    """Fills a sentence with the planted secrets and with others of the same form, and ranks all by the model's loss.

    The owner plants canaries first: training records `template` with a random filling and the given label. A model
    that did not memorise a canary finds its label no likelier there than with any other filling.
    """

    name: ClassVar[str] = "canary_exposure"
    title: ClassVar[str] = "Exposure of canaries"
    question: ClassVar[str] = "Do secrets in the training texts stand out?"
    requires: ClassVar[frozenset[Access]] = frozenset({"scores"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    references: ClassVar[tuple[str, ...]] = ("Carlini et al., The Secret Sharer, arXiv 1802.08232",)
    standards: ClassVar[tuple[str, ...]] = standards.MEMBERSHIP
    metrics: ClassVar[Mapping[str, str]] = {
        "max_exposure": "Exposure in bits of the canary that stands out most: each bit halves the fillings that an "
        "attacker must try. Without memorisation about 1.44 for one canary, more for the best of several.",
        "exposed": "Share of canaries so likely that chance explains none of them (5 %, Bonferroni).",
    }
    cost: ClassVar[str] = "one forward pass per canary and reference"

    template: str = Field(description="The planted text with `{}` where the secret stands.")
    planted: tuple[str, ...] = Field(min_length=1, description="The secrets that were planted, all of one length.")
    label: str = Field(description="The class that the planted records have.")
    alphabet: str = Field(default="0123456789", min_length=2, description="The characters that a secret is drawn from.")
    beside: str | None = Field(default=None, description="The other text of the planted records, where they are pairs.")
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair `template` is.")
    others: int = Field(default=1000, ge=10, description="Other fillings to rank them among; all if there are fewer.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.template.count(GAP) != 1:
            raise ValueError("template must hold {} once, where the secret stands")
        if len(set(self.planted)) < len(self.planted) or len(set(self.alphabet)) < len(self.alphabet):
            raise ValueError("planted and alphabet must name each secret and each character once")
        if len({len(secret) for secret in self.planted}) > 1 or set("".join(self.planted)) - set(self.alphabet):
            raise ValueError("the planted secrets must have one length, and no characters but those of alphabet")
        if self._space - len(self.planted) < 10:
            raise ValueError(f"there are only {self._space} secrets of this form: exposure needs at least 10 others")
        return self

    @property
    def _space(self) -> int:
        return len(self.alphabet) ** len(self.planted[0])

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        others = self._others(context.seed)
        context.progress.start(self.title, len(others) + len(self.planted))
        losses = self._losses(target, samples, [*self.planted, *others])
        context.progress.advance(len(losses))
        found = self._exposures(losses)
        metrics = tuple(self._metrics(found, len(others)))
        ranked = "all others" if len(others) + len(self.planted) == self._space else f"{len(others)} random others"
        highest = max(found, key=lambda one: one.value)
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=self.title,
            summary=f"Among {ranked} of the same form, the canary that stands out most has rank {highest.rank} "
            f"(exposure {highest.value:.1f} bits); {self._exposed(found, len(others))} of {len(found)} are likelier "
            "than chance explains.",
            status="ok",
            parameters=self.model_dump(exclude={"id", "variants"}),
            metrics=metrics,
            findings=tuple(self._findings(found, len(others))),
            figures=(self._table(found),),
            evidence=(context.evidence("losses", {"losses": losses}),),
            not_covered=(
                "Whether other records were memorised: canaries are as rare as a text can be.",
                "Secrets that the model could be made to say: a classifier says no text.",
            ),
            references=self.references,
            standards=self.standards,
            forwards=len(losses),
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        others = self._others(context.seed)
        recorded = context.read_evidence(result.evidence[0])["losses"]
        again = self._losses(target, samples, [*self.planted, *others])
        same = recorded.shape == again.shape and torch.allclose(recorded, again, rtol=1e-3, atol=1e-5)
        yield Claim("the model's losses are as recorded", same)
        if recorded.shape != again.shape:
            return
        yield from recomputed(self._metrics(self._exposures(recorded), len(others)), result, "recorded losses")

    def _others(self, seed: int) -> list[str]:
        """Fillings that were not planted: all, or as many as asked for at random."""
        planted, length = set(self.planted), len(self.planted[0])
        if self._space - len(planted) <= self.others:
            return [text for text in map("".join, product(self.alphabet, repeat=length)) if text not in planted]
        rng = np.random.default_rng(seed)
        found: dict[str, None] = {}
        while len(found) < self.others:
            text = "".join(self.alphabet[i] for i in rng.integers(0, len(self.alphabet), length))
            if text not in planted:
                found[text] = None
        return list(found)

    def _losses(self, target: Target, samples: Samples, secrets: Sequence[str]) -> Tensor:
        """Cross-entropy ``(n,)``, float64, of the label on the template with each secret."""
        if self.label not in target.classes:
            raise SpecError(registry.unknown("class", self.label, target.classes))
        texts = [self.template.replace(GAP, secret) for secret in secrets]
        raws = self._records(texts, pairs=samples.inputs[np.arange(1)].ndim > 1)
        logits = Texts.of(target, samples, 1).logits(raws).double()
        if not logits.isfinite().all():
            raise UnsupportedError("canary_exposure: the model's scores of some fillings are not finite")
        return -logits.log_softmax(1)[:, target.classes.index(self.label)]

    def _records(self, texts: Sequence[str], *, pairs: bool) -> Sequence[Raw]:
        """The canaries as the model reads them."""
        if pairs != (self.beside is not None):
            remedy = "name the planted records' other text in beside" if pairs else "leave out beside"
            raise UnsupportedError(
                f"canary_exposure: the model reads {'pairs of' if pairs else 'single'} texts: {remedy}"
            )
        if self.beside is None:
            return texts
        return [(text, self.beside) if self.column == "first" else (self.beside, text) for text in texts]

    def _exposures(self, losses: Tensor) -> list[Exposure]:
        scores: NDArray[np.float64] = losses.numpy()
        count = len(self.planted)
        rest = self._space - count + 1  # each canary is ranked among what was not planted
        return exposures(scores[:count], scores[count:], float(rest))

    def _exposed(self, found: Sequence[Exposure], others: int) -> int:
        return sum(one.rank / (others + 1) * len(found) <= _LEVEL for one in found)

    def _metrics(self, found: Sequence[Exposure], others: int) -> Iterator[Metric]:
        most = max(found, key=lambda one: one.value)
        yield estimate(
            "max_exposure",
            most.value,
            (most.low, most.high),
            others,
            label="Exposure of the most exposed canary (bits)",
            higher_is_better=False,
            method="clopper-pearson",
        )
        label = "Canaries that chance does not explain"
        yield rate("exposed", self._exposed(found, others), len(found), label=label, higher_is_better=False)

    def _findings(self, found: Sequence[Exposure], others: int) -> Iterator[Finding]:
        exposed = self._exposed(found, others)
        if exposed:
            yield Finding(
                severity="high",
                title=f"{exposed} of {len(found)} canaries were memorised",
                detail="The model's loss tells the planted secrets from others of the same form, so it tells real ones "
                "that occur as often.",
                remedy="Remove secrets and duplicates from the training texts, train for fewer epochs, or with dp_sgd.",
                standards=standards.MEMBERSHIP,
            )

    def _table(self, found: Sequence[Exposure]) -> Table:
        rows = tuple(
            (secret, one.rank, round(one.value, 2), round(one.low, 2), round(one.high, 2))
            for secret, one in zip(self.planted, found, strict=True)
        )
        columns = ("secret", "rank", "exposure (bits)", "95 % from", "to")
        return Table(id="canaries", title="Exposure of each canary", columns=columns, rows=rows)
