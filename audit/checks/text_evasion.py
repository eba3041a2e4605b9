"""How small an edit of a text makes the model err."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ...attacks.models import attacking
from ...attacks.text.attack import TextAttack
from ...attacks.text.encoded import Precision
from ...attacks.text.engine import TextOutcome, attack_texts
from ...attacks.text.passage import Passage
from ...attacks.text.recipes import FREE, RECIPES, SEARCHES, Limits, Resources, build, guard_of, guards
from ...attacks.text.requests import Service
from ...attacks.text.resources.places import word_lists
from ...attacks.text.services import Batched
from ...attacks.text.victim import Victim, broken
from ...reports.record import Metric, Result
from .. import registry
from ..errors import SpecError
from ..samples import Samples
from ..target import Access, Modality, Target
from . import standards
from .base import Check, Claim, Context
from .metrics import by_name, percent
from .outputs import same_predictions
from .text_constraints import SIMILAR, as_guarded, keeps, missing_guards, recipe_of, unguarded
from .text_evidence import pack_edits, unpack_edits
from .text_figures import charts, shown_passages
from .text_findings import findings
from .text_inputs import Texts
from .text_measures import TextMeasured, measured_of
from .text_resources import (
    gradient_service,
    language_model,
    masked_model,
    needed,
    relaxed_service,
    sentence_encoder,
    vocabulary,
)


class TextEvasion(Check):
    """Edits each text the model gets right, within constraints and a budget of queries, and counts what still stands.

    Attacks: `characters`, `deepwordbug`, `typos`, `misspelt`, `homoglyphs`, `invisible`, `whitespace`, `distractors`,
    `pwws`, `textfooler`, `masked`, `genetic`, `hotflip`, `gbda`. Those on synonyms need WordNet or word vectors, which
    come from packages by name; nothing is fetched.

    `label_preserving` keeps what decides a label, word by word: no negation is put in or taken away, numbers stay, no
    word becomes its opposite (by an affix; by WordNet where it is found), praise stays praise, blame stays blame and
    neutral words stay neutral (by a sentiment lexicon where one is found), and with `encoder` the sentence stays
    similar. The report says which of these were looked at.
    """

    name: ClassVar[str] = "text_evasion"
    version: ClassVar[int] = 4
    title: ClassVar[str] = "Adversarial robustness of texts"
    question: ClassVar[str] = "How small a change of the input makes the model err?"
    requires: ClassVar[frozenset[Access]] = frozenset({"labels"})
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    references: ClassVar[tuple[str, ...]] = (
        "Gao et al., Black-box Generation of Adversarial Text Sequences (DeepWordBug), arXiv 1801.04354",
        "Ren et al., Generating Natural Language Adversarial Examples (PWWS), ACL 2019",
        "Jin et al., Is BERT Really Robust? (TextFooler), arXiv 1907.11932",
        "Garg and Ramakrishnan, BAE, arXiv 2004.01970",
        "Ebrahimi et al., HotFlip, arXiv 1712.06751",
        "Guo et al., Gradient-based Adversarial Attacks against Text Transformers (GBDA), arXiv 2104.13733",
        "Alzantot et al., Generating Natural Language Adversarial Examples, arXiv 1804.07998",
        "Boucher et al., Bad Characters, arXiv 2106.09898",
    )
    standards: ClassVar[tuple[str, ...]] = standards.BLACK_BOX_EVASION
    metrics: ClassVar[Mapping[str, str]] = {
        "clean_accuracy": "Share of the attacked data classified as labelled before the attack.",
        "robust_accuracy": "Share of texts right as they are and with no adversarial version found.",
        "attack_success_rate": "Share of the attacked texts that were broken; all but texts of the target class are "
        "attacked that the model gets right.",
        "words_changed": "Mean number of words edited in the successes.",
        "share_changed": "Mean share of the words edited in the successes.",
        "similarity": "Mean over successes of one minus edit distance over length, in characters.",
        "meaning": "Mean over successes of the cosine of sentence embeddings; with `encoder` only.",
        "queries_per_sample": "Versions of a text that the model was asked about, per text attacked.",
        "median_queries_to_success": "Median of the same over successes.",
    }
    cost: ClassVar[str] = "up to `queries` forward passes per text the model gets right; usually a tenth of that"

    attack: str = Field(default="characters", description="Name of the attack.")
    queries: int = Field(default=300, ge=2, description="Most versions of a text that the model is asked about.")
    search: str | None = Field(default=None, description=f"Replaces the attack's search: {', '.join(SEARCHES)}.")
    max_changed: float | None = Field(default=None, gt=0, le=1, description="Most words edited, as a share.")
    protect: tuple[str, ...] = Field(default=(), description="Words that stay as they are.")
    similarity: float | None = Field(
        default=None,
        gt=-1,
        lt=1,
        description="Smallest cosine of sentence embeddings; needs `encoder`. If left out: 0.8 where labels are "
        "preserved and there is an encoder.",
    )
    encoder: str | None = Field(default=None, description="Hugging Face folder of a sentence encoder.")
    fluency: float | None = Field(
        default=None, gt=0, description="Nats per token a text may become less likely; needs `language_model`."
    )
    language_model: str | None = Field(default=None, description="Hugging Face folder of a causal language model.")
    masked_model: str | None = Field(default=None, description="Folder of a masked language model, for `masked`.")
    wordnet: str | None = Field(default=None, description="Folder of WordNet's files, where its package is not found.")
    vectors: str | None = Field(default=None, description="Folder of word vectors, where the package is not found.")
    misspellings: str | None = Field(default=None, description="File of misspellings, where nlpaug is not found.")
    label_preserving: bool | None = Field(
        default=None,
        description="Whether edits must leave alone what decides a label. If left out: for hotflip, gbda, textfooler, "
        "masked and genetic, which exchange words by gradient or nearest neighbour.",
    )
    lexicon: str | None = Field(
        default=None, description="File of words and their polarity, where vaderSentiment is not found."
    )
    column: Literal["first", "second"] = Field(default="second", description="Which text of a pair is edited.")
    target: str | None = Field(default=None, description="Name of the class to reach; any wrong one if left out.")
    limit: int | None = Field(default=None, ge=1, description="Attack at most so many texts, evenly spaced.")
    gallery: int = Field(default=8, ge=0, description="How many successes to show.")
    batch_size: int | None = Field(default=None, ge=1, description="Largest batch; 128 if left out.")
    precision: Precision = Field(
        default="float32",
        description="bfloat16 to search in half precision where the tokenizer tells padding; float32 decides.",
    )

    @field_validator("attack")
    @classmethod
    def _attack_exists(cls, attack: str) -> str:
        if attack not in RECIPES:
            raise ValueError(registry.unknown("text attack", attack, RECIPES))
        return attack

    @field_validator("search")
    @classmethod
    def _search_exists(cls, search: str | None) -> str | None:
        if search is not None and search not in SEARCHES:
            raise ValueError(registry.unknown("search", search, SEARCHES))
        return search

    @model_validator(mode="after")
    def _models_are_given(self) -> TextEvasion:
        for option, model in (("similarity", "encoder"), ("fluency", "language_model")):
            if getattr(self, option) is not None and getattr(self, model) is None:
                raise ValueError(f"{option} needs {model}: the folder of the model that measures it")
        if self.attack == "masked" and self.masked_model is None:
            raise ValueError("attack masked needs masked_model: the folder of a masked language model")
        return self

    def required(self) -> frozenset[Access]:
        white_box = self.attack in ("hotflip", "gbda") or self.search == "gradient"
        return frozenset({"gradients" if white_box else "labels"})

    def files(self) -> tuple[str, ...]:
        models = (self.encoder, self.language_model, self.masked_model)
        lists = (self.wordnet, self.vectors, self.misspellings, self.lexicon)
        return tuple(path for path in (*models, *lists) if path is not None)

    def surroundings(self) -> dict[str, int]:
        return word_lists()

    def run(self, target: Target, samples: Samples, context: Context) -> Result:
        texts = Texts.of(target, samples, self.limit, int(self.column == "second"))
        attack, goals = self._attack(target, context), self._goals(texts)
        context.progress.start(f"{self.title}: {self.attack}", len(texts))
        with attacking(target.module):
            outcome = attack_texts(
                attack,
                texts.logits,
                texts.raws,
                texts.y,
                budget=self.queries,
                targets=goals,
                column=texts.column,
                seed=context.seed,
                ids=texts.samples.ids.tolist(),
                batch_size=self._batch(context),
                quick=texts.quick(self.precision),
                services=self._services(attack, texts, context),
                progress=context.progress.advance,
            )
        texts.require_finite(outcome.clean_logits)
        encoder = self._encoder(target, context)
        measured = self._measured(texts, outcome.clean_logits, outcome.edits, outcome.queries, encoder)
        evidence = context.evidence("adversarial", self._evidence(texts, outcome))
        metrics = measured.metrics()
        return Result(
            check=self.name,
            id=self.id or self.name,
            title=f"{self.title}: {self.attack}",
            summary=self._summary(by_name(metrics)),
            status="ok",
            parameters={**self.model_dump(exclude={"id", "variants"}, exclude_none=True), "recipe": recipe_of(attack)},
            metrics=metrics,
            findings=tuple(findings(measured, self.attack, self.standards)),
            figures=(
                *charts(measured, samples.classes, self.attack),
                *shown_passages(texts, outcome, measured, self.gallery),
            ),
            evidence=(evidence,),
            warnings=(*self._warnings(measured, outcome), *missing_guards(attack)),
            not_covered=self._not_covered(attack),
            references=self.references,
            standards=self.standards,
            forwards=outcome.forwards,
            backwards=outcome.backwards,
        )

    def verify(self, target: Target, samples: Samples, result: Result, context: Context) -> Iterator[Claim]:
        texts = Texts.of(target, samples, self.limit, int(self.column == "second"))
        recorded = context.read_evidence(result.evidence[0])
        same = np.array_equal(recorded["ids"].numpy(), texts.samples.ids) and torch.equal(recorded["labels"], texts.y)
        yield Claim("the attack ran on the audited texts and labels", same)
        if not same:
            return
        victim = Victim(
            texts.logits, texts.raws, texts.y.tolist(), column=texts.column, batch_size=self._batch(context)
        )
        originals = [texts.text(row) for row in range(len(texts))]
        clean = victim.outputs(range(len(texts)), originals)
        agree = same_predictions(clean, recorded["clean_logits"])
        yield Claim("the model predicts as recorded", bool(agree.all()), f"{agree.sum()} of {len(agree)} texts")
        edits = unpack_edits(recorded, len(texts))
        attack = as_guarded(self._attack(target, context), result.parameters)
        yield from self._verify_edits(attack, texts, victim, originals, edits, context)
        encoder = self._encoder(target, context)
        again = by_name(self._measured(texts, recorded["clean_logits"], edits, recorded["queries"], encoder).metrics())
        for metric in result.metrics:
            yield _same_value(metric, again.get(metric.name))

    def _verify_edits(
        self,
        attack: TextAttack,
        texts: Texts,
        victim: Victim,
        originals: Sequence[str],
        edits: Sequence[dict[int, str]],
        context: Context,
    ) -> Iterator[Claim]:
        """Whether each edited text keeps every constraint and fools the model when it is read as a plain string."""
        goals = self._goals(texts)
        rows = [row for row, own in enumerate(edits) if own]
        passages = [Passage.of(originals[row]).with_words(edits[row]) for row in rows]
        services = self._services(attack, texts, context)
        kept = sum(
            keeps(attack, services, row, Passage.of(originals[row]), passage)
            for row, passage in zip(rows, passages, strict=True)
        )
        yield Claim("adversarial texts keep every constraint", kept == len(rows), f"{kept} of {len(rows)}")
        hits = 0
        if rows:
            logits = victim.outputs(rows, [passage.text for passage in passages])
            goal = (texts.y if goals is None else goals)[torch.tensor(rows)]
            hits = int(broken(logits, goal, targeted=goals is not None).sum())
        yield Claim("the model errs on the adversarial texts", hits == len(rows), f"{hits} of {len(rows)}")

    def _attack(self, target: Target, context: Context) -> TextAttack:
        resources = Resources(
            wordnet=_path(self.wordnet, context),
            vectors=_path(self.vectors, context),
            misspellings=_path(self.misspellings, context),
            lexicon=_path(self.lexicon, context),
            words=lambda: vocabulary(target),
        )
        search = None if self.search is None else SEARCHES[self.search]
        similarity = self.similarity
        if similarity is None and self.encoder is not None and guards(self.attack, self.label_preserving):
            similarity = SIMILAR
        limits = Limits(self.max_changed, self.protect, similarity, self.fluency, search, self.label_preserving)
        return build(self.attack, resources, limits)

    def _services(self, attack: TextAttack, texts: Texts, context: Context) -> dict[str, Service]:
        goals = self._goals(texts)
        aims = (texts.y if goals is None else goals).tolist()
        victim = Victim(texts.logits, texts.raws, aims, goals is not None, texts.column, self._batch(context))
        device, path, guard = texts.target.device, context.path, guard_of(attack)
        fits, ids = None if guard is None else guard.fits, texts.samples.ids.tolist()
        return needed(
            attack.services,
            {
                "sentences": lambda: sentence_encoder(path(self.encoder or ""), device),
                "fluency": lambda: language_model(path(self.language_model or ""), device),
                "masked": lambda: masked_model(path(self.masked_model or ""), device),
                "relaxed": lambda: relaxed_service(texts.target, victim, context.seed, ids, fits),
                "gradients": lambda: gradient_service(texts.target, victim),
            },
        )

    def _goals(self, texts: Texts) -> Tensor | None:
        if self.target is None:
            return None
        classes = texts.target.classes
        if self.target not in classes:
            raise SpecError(registry.unknown("class", self.target, classes))
        return torch.full_like(texts.y, classes.index(self.target))

    def _encoder(self, target: Target, context: Context) -> Batched | None:
        return None if self.encoder is None else sentence_encoder(context.path(self.encoder), target.device)

    def _batch(self, context: Context) -> int:
        return self.batch_size or context.batch_size or 128

    def _measured(
        self,
        texts: Texts,
        clean: Tensor,
        edits: Sequence[dict[int, str]],
        queries: Tensor,
        encoder: Batched | None,
    ) -> TextMeasured:
        y, goals = texts.y, self._goals(texts)
        correct = clean.argmax(1) == y
        tried = correct if goals is None else correct & (goals != y)
        originals = [texts.text(row) for row in range(len(texts))]
        meaning = None if encoder is None else _meaning(encoder, originals, edits)
        return measured_of(y.numpy(), correct.numpy(), tried.numpy(), originals, edits, queries.numpy(), meaning)

    def _evidence(self, texts: Texts, outcome: TextOutcome) -> dict[str, Tensor]:
        rows = outcome.success.nonzero().flatten().tolist()
        return {
            "ids": torch.from_numpy(texts.samples.ids),
            "labels": texts.y,
            "clean_logits": outcome.clean_logits,
            "adv_logits": outcome.logits,
            "queries": outcome.queries,
            **pack_edits(outcome.edits, rows),
        }

    def _summary(self, metrics: Mapping[str, Metric]) -> str:
        clean, robust = metrics["clean_accuracy"], metrics["robust_accuracy"]
        assert clean.value is not None and robust.value is not None  # noqa: PT018
        assert robust.ci_low is not None and robust.ci_high is not None  # noqa: PT018
        words = metrics["words_changed"].value
        size = "" if words is None else f" Successes change {words:.1f} words on average."
        goal = "" if self.target is None else f" towards {self.target!r}"
        return (
            f"Of {robust.n} texts the model gets {percent(clean.value)} right as they are, and {percent(robust.value)} "
            f"(95 % interval {percent(robust.ci_low)} to {percent(robust.ci_high)}) when {self.attack} edits "
            f"them{goal}, at {self.queries} queries each at most.{size} "
            "This is an upper bound: a stronger attack can only lower it."
        )

    def _warnings(self, measured: TextMeasured, outcome: TextOutcome) -> Iterator[str]:
        if not measured.tried.any():
            yield "No text was attacked: the success rate is undefined."
        elif not measured.fallen.any():
            yield "No attack succeeded: the sizes of edits are undefined."
        out = int(((outcome.queries >= self.queries) & ~outcome.success).sum())
        if out:
            yield f"For {out} texts the budget of {self.queries} queries ran out: more may find more."

    def _not_covered(self, attack: TextAttack) -> tuple[str, ...]:
        return (
            *unguarded(attack, free=self.attack in FREE),
            "Attacks other than the one named, in particular attacks adapted to a defense or with more queries.",
            "Whether a person would still read the label from an edited text: only the constraints speak for that.",
            "Paraphrases, translations, and texts written from scratch to deceive.",
        )


def _meaning(encoder: Batched, originals: Sequence[str], edits: Sequence[dict[int, str]]) -> np.ndarray:
    rows = [row for row, own in enumerate(edits) if own]
    values = np.ones(len(originals))
    if rows:
        own = torch.stack(encoder(rows, [originals[row] for row in rows]))
        edited = [Passage.of(originals[row]).with_words(edits[row]).text for row in rows]
        other = torch.stack(encoder(rows, edited))
        values[rows] = torch.nn.functional.cosine_similarity(own, other).double().numpy()
    return values


def _path(given: str | None, context: Context) -> Path | None:
    return None if given is None else context.path(given)


def _same_value(metric: Metric, again: Metric | None) -> Claim:
    what = f"{metric.name} follows from the adversarial texts"
    if again is None or (metric.value is None) != (again.value is None):
        return Claim(what, False, "it does not")
    if metric.value is None or again.value is None:
        return Claim(what, True, "undefined")
    return Claim(what, abs(metric.value - again.value) <= 1e-3, f"{metric.value:.6g}, recomputed {again.value:.6g}")
